"""Reads tensors whose shards are in several safetensors files, as torch.distributed.checkpoint writes them.

The header of each file has the offsets of its shards, so one process can join them without that library.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modular_gpt.core.json_files import parse_json

FILES = "shard-*.safetensors"
HEADER, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


class TensorShard(NamedTuple):
    """A block of a tensor: its file, and its first index and size in each dimension."""

    path: Path
    start: list[int]
    shape: list[int]


def shard_files(directory: Path, names: Iterable[str]) -> list[Path]:
    """The paths of those of the ``names`` in a directory that are shard files."""
    return [directory / name for name in sorted(names) if fnmatch(name, FILES)]


def read_shards(paths: Sequence[Path], prefix: str) -> dict[str, Tensor]:
    """Read and join the tensors ``<prefix>/<name>`` in shard files; returns them by name.

    Raises:
        OSError, SafetensorError: a file cannot be read, or the shards of a tensor are incomplete.
    """
    shards: dict[str, list[TensorShard]] = {}
    for path in paths:
        for key, shard in _shards(path):
            if key.startswith(f"{prefix}/"):
                shards.setdefault(key, []).append(shard)
    return {key.removeprefix(f"{prefix}/"): _joined(key, found) for key, found in shards.items()}


def _shards(path: Path) -> Iterator[tuple[str, TensorShard]]:
    with safe_open(path, framework="pt") as file:
        try:
            places = parse_json((file.metadata() or {})[HEADER])
            starts = {key: [int(start) for start in places[key][OFFSETS]] for key in file.keys()}  # noqa: SIM118
        except (KeyError, TypeError, ValueError) as error:
            raise SafetensorError(f"the header of {path.name} does not give the offsets of its shards") from error
        for key, start in starts.items():
            yield key, TensorShard(path, start, file.get_slice(key).get_shape())


def _joined(key: str, shards: list[TensorShard]) -> Tensor:
    first = shards[0]
    same = all(len(shard.start) == len(shard.shape) == len(first.shape) for shard in shards)
    shape = [max(s.start[d] + s.shape[d] for s in shards) for d in range(len(first.shape))] if same else []
    negative = any(start < 0 for shard in shards for start in shard.start)
    # checked before memory is allocated for a size that a header claims
    if not same or negative or math.prod(shape) != sum(math.prod(shard.shape) for shard in shards):
        raise SafetensorError(f"the shards of {key} do not make up one tensor")
    whole: Tensor | None = None
    for shard in shards:
        with safe_open(shard.path, framework="pt") as file:
            tensor = file.get_tensor(key)
        whole = torch.empty(shape, dtype=tensor.dtype) if whole is None else whole
        whole[tuple(slice(a, a + n) for a, n in zip(shard.start, shard.shape, strict=True))] = tensor
    assert whole is not None
    return whole
