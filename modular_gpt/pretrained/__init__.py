"""Conversion of published models to GPTModel and back."""

from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.hub import tokenizer_file
from modular_gpt.pretrained.load import load_pretrained
from modular_gpt.pretrained.save import as_published, save_pretrained
from modular_gpt.pretrained.surgery import Transplant, text_loss, transplant, with_components, with_parts

__all__ = [
    "FAMILIES",
    "Transplant",
    "as_published",
    "load_pretrained",
    "save_pretrained",
    "text_loss",
    "tokenizer_file",
    "transplant",
    "with_components",
    "with_parts",
]
