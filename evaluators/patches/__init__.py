"""Which patches of a picture a policy keeps, and where image tokens lie in a picture."""
