"""Search spaces as YAML, with the data they need beside them."""
