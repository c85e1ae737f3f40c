"""Published rules: where a search begins, and what it must beat."""
