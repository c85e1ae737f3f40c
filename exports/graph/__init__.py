"""Graphs of a model under a policy, which tools run without transformers."""
