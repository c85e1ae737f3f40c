"""Bayesian optimisation over categorical choices, as an Optuna sampler; needs no model and no search space file."""
