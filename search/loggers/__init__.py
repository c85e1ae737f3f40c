"""Sends the trials of a search to TensorBoard, MLflow or Weights & Biases, each through its own client."""
