"""Strategies that choose the next tokens, one file each."""

from modular_gpt.generation.strategies.base import Sampling, Strategy

__all__ = ["Sampling", "Strategy"]
