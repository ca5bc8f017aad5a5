"""Data sets, each read by a TFDS builder of its own; `registry` has them all by name."""
