"""The caches of layers that store fewer tokens than the sequence has."""
