"""VQGANs trained on the pictures of a prepared source, measured, and used to turn a catalogue's pictures into codes."""
