"""Checks of a model's inputs, which raise a ConfigError before a kernel fails.

Values are read on the CPU only, where that needs no synchronisation, and nothing is checked while a graph is traced.
"""

import operator
from typing import SupportsIndex

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.sequences import as_ids
from modular_gpt.model.vocabulary import VocabularyShard

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_ids(ids: object, device: torch.device) -> Tensor:
    """Token ids (B, T) as a tensor; lists and arrays become one.

    Raises:
        ConfigError: ``ids`` are text, no whole numbers, of another number of dimensions, or empty.
    """
    tensor = as_ids(ids, "ids", device)
    if torch.compiler.is_compiling():
        return tensor
    if tensor.ndim != 2:
        hint = "; give a batch of one, ids[None]" if tensor.ndim == 1 else ""
        raise ConfigError(f"ids have the shape (batch, tokens), got {tuple(tensor.shape)}{hint}")
    if tensor.dtype not in INTEGERS:
        raise ConfigError(f"ids are whole numbers, got {tensor.dtype}")
    if not tensor.numel():
        raise ConfigError(f"ids hold no token: their shape is {tuple(tensor.shape)}")
    return tensor if tensor.dtype in (torch.int64, torch.int32) else tensor.long()


def checked_targets(targets: object, ids: Tensor) -> Tensor:
    """Targets (B, T) as 64-bit integers, which the loss needs.

    Raises:
        ConfigError: ``targets`` are no whole numbers, or not of the shape of ``ids``.
    """
    tensor = as_ids(targets, "targets", ids.device)
    if torch.compiler.is_compiling():
        return tensor.long()
    if tensor.shape != ids.shape:
        raise ConfigError(f"targets have the shape of the ids, {tuple(ids.shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype not in INTEGERS:
        raise ConfigError(f"targets are whole numbers, got {tensor.dtype}")
    return tensor.long()


def checked_padding(padding: object, ids: Tensor, cached: bool) -> Tensor:
    """The number of leading padding tokens of each row, (B,), as a tensor.

    cached: further tokens may follow, so that a row may consist of padding

    Raises:
        ConfigError: ``padding`` is not one whole number for each row, or a number is negative or leaves no token.
    """
    tensor = as_ids(padding, "padding", ids.device)
    if torch.compiler.is_compiling():
        return tensor
    if tensor.shape != ids.shape[:1] or tensor.dtype not in INTEGERS:
        raise ConfigError(
            f"padding gives the number of leading columns to ignore for each of {len(ids)} rows, got "
            f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if _readable(tensor):
        lowest, highest = (int(value) for value in tensor.aminmax())
        if lowest < 0 or (highest >= ids.shape[1] and not cached):
            wrong = lowest if lowest < 0 else highest
            limit = ids.shape[1] - 1
            raise ConfigError(f"padding must be from 0 to {limit} for {ids.shape[1]} tokens, got {wrong}")
    return tensor


def checked_documents(documents: object, ids: Tensor) -> Tensor:
    """Document ids (B, T) as a tensor.

    Raises:
        ConfigError: ``documents`` are no whole numbers, or not of the shape of ``ids``.
    """
    tensor = as_ids(documents, "documents", ids.device)
    if not torch.compiler.is_compiling() and (tensor.shape != ids.shape or tensor.dtype not in INTEGERS):
        raise ConfigError(
            f"documents are whole numbers of the shape of the ids, {tuple(ids.shape)}, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    return tensor


def check_cache_size(batch: object, max_length: object, window: object) -> None:
    """Raise a ConfigError for a size that is no whole number or too small; None is allowed but for ``batch``."""
    for name, value, lowest_allowed in (("batch", batch, 1), ("max_length", max_length, 0), ("window", window, 1)):
        if isinstance(value, torch.SymInt) or (value is None and name != "batch"):
            continue
        if isinstance(value, bool) or not isinstance(value, SupportsIndex) or operator.index(value) < lowest_allowed:
            raise ConfigError(f"{name} of a cache must be a whole number of {lowest_allowed} or more, got {value!r}")


def embedded(embedding: nn.Embedding, ids: Tensor, vocabulary: VocabularyShard | None = None) -> Tensor:
    """Embed ids, (B, T) -> (B, T, D).

    vocabulary: the shard of the table that this process has; None: the table is not sharded

    Raises:
        ConfigError: an id is outside the vocabulary; on a GPU the kernel stops the process instead.
    """
    vectors: Tensor
    if torch.compiler.is_compiling() and vocabulary is None:
        vectors = embedding(ids)
        return vectors
    try:
        vectors = embedding(ids) if vocabulary is None else vocabulary.embed(ids, embedding.weight)
        return vectors
    except IndexError:
        raise ConfigError(outside("ids", ids, embedding.num_embeddings)) from None


def outside(name: str, values: Tensor, vocab_size: int) -> str:
    """The error message for ids outside the vocabulary, with the first of them."""
    wrong = values[(values < 0) | (values >= vocab_size)]
    which = f" {int(wrong[0])}" if wrong.numel() else ""
    return (
        f"{name} contain{which}, but the model's ids run from 0 to {vocab_size - 1}; "
        "encode the text with the tokenizer that the model was trained with"
    )


def _readable(tensor: Tensor) -> bool:
    """Whether values can be read without synchronisation: a plain tensor on the CPU."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"
