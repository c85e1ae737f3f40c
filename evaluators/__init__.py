"""What a policy keeps and what it costs: accuracy, FLOPs, latency, memory."""
