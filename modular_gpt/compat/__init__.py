"""Classes and functions with the names and arguments of other code bases, whose examples run with another import.

from modular_gpt.compat import GPTModel, SimpleTokenizer, TextDataset, Trainer
"""

from modular_gpt.compat.datasets import GPTDatasetV1, TextDataset, create_dataloader_v1
from modular_gpt.compat.sizes import GPT_CONFIG_124M, GPT_CONFIG_355M, GPT_CONFIG_774M, GPT_CONFIG_1558M
from modular_gpt.compat.tokenizer import SimpleTokenizer
from modular_gpt.compat.trainer import Trainer
from modular_gpt.model import GPTModel, TransformerBlock

__all__ = [
    "GPT_CONFIG_124M",
    "GPT_CONFIG_355M",
    "GPT_CONFIG_774M",
    "GPT_CONFIG_1558M",
    "GPTDatasetV1",
    "GPTModel",
    "SimpleTokenizer",
    "TextDataset",
    "Trainer",
    "TransformerBlock",
    "create_dataloader_v1",
]
