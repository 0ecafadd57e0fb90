"""Conversion of published models to GPTModel and back."""

from modular_gpt.evaluation import text_loss
from modular_gpt.model.surgery import Transplant, transplant, with_components, with_parts
from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.load import load_pretrained
from modular_gpt.pretrained.save import as_published, family_of, save_pretrained
from modular_gpt.weights import tokenizer_file

__all__ = [
    "FAMILIES",
    "Transplant",
    "as_published",
    "family_of",
    "load_pretrained",
    "save_pretrained",
    "text_loss",
    "tokenizer_file",
    "transplant",
    "with_components",
    "with_parts",
]
