"""Model files in the Hugging Face format: located in a folder, the local cache or the hub, and read lazily."""

from modular_gpt.core.checkpoint_paths import SHORT_NAMES
from modular_gpt.weights.hub import CONFIG_FILE, TOKENIZER, Source, Unreachable, locate, tokenizer_file
from modular_gpt.weights.mxfp4 import dequantising
from modular_gpt.weights.own_type import OWN_TYPE, PREFIX, read_own_model
from modular_gpt.weights.tensor_files import LazyTensor, Tensors, View, as_os_error, listed
from modular_gpt.weights.views import RowsOfSeveral, language_model, recut, renamed
from modular_gpt.weights.write import write_files

__all__ = [
    "CONFIG_FILE",
    "OWN_TYPE",
    "PREFIX",
    "SHORT_NAMES",
    "TOKENIZER",
    "LazyTensor",
    "RowsOfSeveral",
    "Source",
    "Tensors",
    "Unreachable",
    "View",
    "as_os_error",
    "dequantising",
    "language_model",
    "listed",
    "locate",
    "read_own_model",
    "recut",
    "renamed",
    "tokenizer_file",
    "write_files",
]
