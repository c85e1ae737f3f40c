"""One search for each of several models, and their results side by side."""
