"""Which policy to measure next: numpy and Optuna alone."""
