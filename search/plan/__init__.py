"""Measures what a search will take before it starts."""
