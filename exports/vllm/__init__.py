"""Policies in vLLM: a plug-in that reads the policy from a model's configuration, and folders that carry one."""
