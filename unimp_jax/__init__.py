"""UniMP in JAX: the model and everything that runs it. Knows arrays, not data sets."""
