"""Optimizers, learning-rate schedules, and which parameters they reach."""
