"""The decoder: its config, blocks, initialisation, loss and summary."""

from modular_gpt.model.gpt import GPTModel, ParameterCount, TransformerBlock, build_norm

__all__ = ["GPTModel", "ParameterCount", "TransformerBlock", "build_norm"]
