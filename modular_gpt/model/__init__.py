"""The decoder: its config, blocks, initialisation, loss and summary."""

from modular_gpt.model.block import TransformerBlock, build_norm
from modular_gpt.model.gpt import GPTModel, ParameterCount

__all__ = ["GPTModel", "ParameterCount", "TransformerBlock", "build_norm"]
