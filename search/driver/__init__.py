"""Runs a search: proposes policies, sends them to workers, promotes paused trials, and confirms the front."""
