"""Checkpoints that transformers loads without skipsearch."""
