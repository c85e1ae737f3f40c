"""Writes and prints a finished study: its folder, the HTML report, figures and terminal output."""
