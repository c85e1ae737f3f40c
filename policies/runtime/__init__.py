"""How a model computes under a policy; the docstring of `calls` states the contract."""
