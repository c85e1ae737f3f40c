"""Times of a policy and of the dense model, measured in turns: how certain their ratio is, alone and under load."""
