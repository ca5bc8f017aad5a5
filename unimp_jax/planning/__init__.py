"""What a train step would need on hardware that is not at hand: chips, compiled programs read, estimates."""
