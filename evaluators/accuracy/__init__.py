"""The accuracy evaluator: lm-eval's model interface and tasks, the two splits, and rungs of examples."""
