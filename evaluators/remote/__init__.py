"""Models that are elsewhere: downloaded once a machine."""
