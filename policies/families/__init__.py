"""Finding the decoder layers of each model family, and taking them apart."""
