"""Taking a policy to other tools; see README.md."""
