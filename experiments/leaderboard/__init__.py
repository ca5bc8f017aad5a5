"""`unimp leaderboard`: compares one model with every rival on every data set and task."""
