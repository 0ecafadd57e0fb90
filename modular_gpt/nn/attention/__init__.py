"""Attention: how tokens exchange information. One file per component."""
