"""Positional encoding: how a model knows order. One file per component."""
