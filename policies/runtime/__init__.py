"""How a model computes under a policy; `calls` states the contract."""
