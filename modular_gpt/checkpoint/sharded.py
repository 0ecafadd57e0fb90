"""Tensors of which each of several safetensors files holds pieces, as torch.distributed.checkpoint writes them.

A file's header says where its pieces begin; so they are put together again without that library, and in one process.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FILES = "shard-*.safetensors"
HEADER, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


class TensorShard(NamedTuple):
    """A part of a tensor: in which file, from which index in each dimension, and how large."""

    path: Path
    start: list[int]
    shape: list[int]


def shard_files(directory: Path) -> list[Path]:
    """The files with pieces in a directory."""
    return sorted(directory.glob(FILES))


def read_shards(directory: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors ``<prefix>/<name>``, by name.

    Raises:
        OSError, SafetensorError: a file cannot be read, or the pieces do not make up whole tensors.
    """
    pieces: dict[str, list[TensorShard]] = {}
    for path in shard_files(directory):
        for key, piece in _pieces(path):
            if key.startswith(f"{prefix}/"):
                pieces.setdefault(key, []).append(piece)
    return {key.removeprefix(f"{prefix}/"): _whole(key, found) for key, found in pieces.items()}


def _pieces(path: Path) -> Iterator[tuple[str, TensorShard]]:
    with safe_open(path, framework="pt") as file:
        try:
            places = json.loads((file.metadata() or {})[HEADER])
            starts = {key: [int(start) for start in places[key][OFFSETS]] for key in file.keys()}  # noqa: SIM118
        except (KeyError, TypeError, ValueError) as error:
            raise SafetensorError(f"the header of {path.name} does not say where its pieces belong") from error
        for key, start in starts.items():
            yield key, TensorShard(path, start, file.get_slice(key).get_shape())


def _whole(key: str, pieces: list[TensorShard]) -> Tensor:
    first = pieces[0]
    same = all(len(piece.start) == len(piece.shape) == len(first.shape) for piece in pieces)
    shape = [max(p.start[d] + p.shape[d] for p in pieces) for d in range(len(first.shape))] if same else []
    negative = any(start < 0 for piece in pieces for start in piece.start)
    # before memory is taken for a size that a header claims
    if not same or negative or math.prod(shape) != sum(math.prod(piece.shape) for piece in pieces):
        raise SafetensorError(f"the pieces of {key} do not make up one tensor")
    whole: Tensor | None = None
    for piece in pieces:
        with safe_open(piece.path, framework="pt") as file:
            tensor = file.get_tensor(key)
        whole = torch.empty(shape, dtype=tensor.dtype) if whole is None else whole
        whole[tuple(slice(a, a + n) for a, n in zip(piece.start, piece.shape, strict=True))] = tensor
    assert whole is not None
    return whole
