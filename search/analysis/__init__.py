"""Reads a finished study: its front, its gain over baselines, and policies under other constraints."""
