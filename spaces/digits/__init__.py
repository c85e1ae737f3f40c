"""The embedded default space: a small LLaVA trained on questions about real handwritten digits."""
