"""Proposing a space for a model, from its configuration alone."""
