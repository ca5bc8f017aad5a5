"""`unimp plan`: compiles a preset's train step for TPUs that are not available here."""
