"""The version of skipsearch."""

__version__ = "0.1.0"
