"""Weights in 8 bits: a model that is loaded with them, or gets them with a policy."""
