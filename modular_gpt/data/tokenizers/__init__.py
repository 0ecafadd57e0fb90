"""Tokenizers: text to ids, one file each. Importing this package imports its folder, which registers all of them."""

from modular_gpt.core.registry import import_folder
from modular_gpt.data.tokenizers.base import Tokenizer
from modular_gpt.data.tokenizers.build import build_tokenizer, open_tokenizer, with_former_defaults
from modular_gpt.data.tokenizers.byte_level import BYTE_LETTERS
from modular_gpt.data.tokenizers.char import CharTokenizer
from modular_gpt.data.tokenizers.streaming import StreamDecoder

import_folder(__name__, __path__)

__all__ = [
    "BYTE_LETTERS",
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "build_tokenizer",
    "open_tokenizer",
    "with_former_defaults",
]
