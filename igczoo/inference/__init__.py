"""A photograph in, labels out."""
