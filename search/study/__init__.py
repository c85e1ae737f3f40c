"""Optuna's study of a search in its database, and predictions for trials that answered some of the examples."""
