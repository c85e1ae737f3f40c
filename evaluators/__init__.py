"""Evaluators measure what a policy keeps and what it costs: accuracy, answer loss, FLOPs, latency, memory."""
