"""Layers that read the input of another layer."""
