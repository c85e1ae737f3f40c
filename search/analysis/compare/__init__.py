"""Several studies side by side: whether their axes match, their fronts, paired tests, and how their spaces differ."""
