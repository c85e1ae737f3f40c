"""A trial and its result as plain values, and which results dominate which."""
