"""Image tokens that see their neighbours in the picture alone."""
