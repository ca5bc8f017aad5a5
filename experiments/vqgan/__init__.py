"""VQGANs trained on the images of a prepared source, measured, and used to turn a catalogue's images into codes."""
