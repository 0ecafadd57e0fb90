"""Published models: their checkpoints into GPTModel, and GPTModel into theirs."""

from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.loading import load_pretrained
from modular_gpt.pretrained.saving import save_pretrained
from modular_gpt.pretrained.source import tokenizer_file

__all__ = ["FAMILIES", "load_pretrained", "save_pretrained", "tokenizer_file"]
