"""A card in, verified bytes out."""
