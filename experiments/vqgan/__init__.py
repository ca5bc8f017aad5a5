"""Trains and evaluates VQGANs on the images of a prepared source, and encodes a catalogue's images with them."""
