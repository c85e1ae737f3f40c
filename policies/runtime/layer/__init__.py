"""One decoder layer under a policy."""
