"""Baselines: published rules for what to leave out, which a search starts from and has to beat."""
