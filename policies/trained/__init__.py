"""Weights that were trained under a policy: their files, and putting them into a model."""
