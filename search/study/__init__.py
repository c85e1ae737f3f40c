"""Optuna's study in its database, and what it says of policies that answered only some examples."""
