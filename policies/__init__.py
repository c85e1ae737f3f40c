"""What a policy is, and how a transformers model runs under it. Imports nothing else of skipsearch."""
