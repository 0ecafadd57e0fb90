"""The version, written here only: the build reads it, and an uninstalled checkout has no metadata."""

__version__ = "0.1.0.dev0"
