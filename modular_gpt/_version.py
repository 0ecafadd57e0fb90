"""The version, which the build and citations read."""

__version__ = "0.1.0"
