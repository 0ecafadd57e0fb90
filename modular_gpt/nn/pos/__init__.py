"""Positional encodings. One file per component."""
