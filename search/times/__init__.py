"""Measured times: smoothed by a model of all trials, with the noise of the machine."""
