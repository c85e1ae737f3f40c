"""Accuracy on lm-eval's tasks: its model interface, tasks, splits, and examples drawn a few at a time."""
