"""`unimp plan`: a preset's train step compiled for TPUs that are not at hand."""
