"""Normalisation. One file per component."""
