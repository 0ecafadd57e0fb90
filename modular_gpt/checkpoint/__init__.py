"""Weights on disk: native checkpoints, shards, Hugging Face folders, and any of them by name."""

from modular_gpt.checkpoint.gguf_file import save_gguf
from modular_gpt.checkpoint.manifest import CHECKPOINT_FORMAT as FORMAT
from modular_gpt.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    META,
    MODEL,
    TOKENIZER,
    read_json,
    verify,
)
from modular_gpt.checkpoint.native import (
    BEST,
    FOLDER,
    LATEST,
    STEP,
    Checkpoint,
    CheckpointReader,
    Savable,
    build_model,
    find_checkpoint,
    load_checkpoint,
    open_checkpoint,
    read_tensors,
    save_checkpoint,
)
from modular_gpt.checkpoint.resolve import LoadedModel, load_model

__all__ = [
    "BEST",
    "CONFIG",
    "FOLDER",
    "FORMAT",
    "LATEST",
    "MANIFEST",
    "META",
    "MODEL",
    "STEP",
    "TOKENIZER",
    "Checkpoint",
    "CheckpointReader",
    "LoadedModel",
    "Savable",
    "build_model",
    "find_checkpoint",
    "load_checkpoint",
    "load_model",
    "open_checkpoint",
    "read_json",
    "read_tensors",
    "save_checkpoint",
    "save_gguf",
    "verify",
]
