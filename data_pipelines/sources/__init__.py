"""Data sets, each read by a TFDS builder of its own; `registry` lists them by name."""
