"""Rankings of channels by their energy on calibration examples: how they are made, and their files beside policies."""
