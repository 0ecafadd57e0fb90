"""Foundations: component interfaces, registry, validation of settings, cache, atomic files, errors."""
