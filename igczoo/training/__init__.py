"""Images in, a checkpoint out."""
