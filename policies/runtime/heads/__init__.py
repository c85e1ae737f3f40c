"""The attention of layers with a share of their heads, and where these store."""
