"""A study in a database that a URL names, beside other studies."""
