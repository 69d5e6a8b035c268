"""The version of hal."""

__version__ = "0.1.0"
