"""Attention components: mixing of information between tokens. One file per component."""
