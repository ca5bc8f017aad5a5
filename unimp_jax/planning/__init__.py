"""Resource estimates of a training step for unavailable hardware: chips, analysis of compiled programs, estimates."""
