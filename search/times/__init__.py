"""Time measurements of a study: smoothing, prediction and noise."""
