"""What a search may choose, read from YAML."""
