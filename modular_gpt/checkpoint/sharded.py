"""Read tensors whose shards are in several safetensors files, as torch.distributed.checkpoint writes them.

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
    """A block of a tensor: its file and its name there, and its first index and size in each dimension."""

    path: Path
    start: list[int]
    shape: list[int]
    key: str = ""


def shard_files(directory: Path, names: Iterable[str]) -> list[Path]:
    """The paths of those of the ``names`` in a directory that are shard files."""
    return [directory / name for name in sorted(names) if fnmatch(name, FILES)]


def index_shards(paths: Sequence[Path], prefix: str) -> dict[str, list[TensorShard]]:
    """The shards of each tensor ``<prefix>/<name>`` in shard files, by the name.

    Raises:
        OSError, SafetensorError: a file cannot be read.
    """
    found: dict[str, list[TensorShard]] = {}
    for path in paths:
        for key, shard in _shards(path):
            if key.startswith(f"{prefix}/"):
                found.setdefault(key.removeprefix(f"{prefix}/"), []).append(shard._replace(key=key))
    return found


def _shards(path: Path) -> Iterator[tuple[str, TensorShard]]:
    with safe_open(path, framework="pt") as file:
        try:
            places = parse_json((file.metadata() or {})[HEADER])
            starts = {key: [int(start) for start in places[key][OFFSETS]] for key in file.keys()}  # noqa: SIM118
        except (KeyError, TypeError, ValueError) as error:
            raise SafetensorError(f"the header of {path.name} does not give the offsets of its shards") from error
        for key, start in starts.items():
            yield key, TensorShard(path, start, file.get_slice(key).get_shape())


def read_shards(paths: Sequence[Path], prefix: str) -> dict[str, Tensor]:
    """Read and join the tensors ``<prefix>/<name>`` in shard files; returns them by name.

    Raises:
        OSError, SafetensorError: a file cannot be read, or the shards of a tensor are incomplete.
    """
    found = index_shards(paths, prefix)
    return {name: join_shards(joined_shape(f"{prefix}/{name}", shards), shards) for name, shards in found.items()}


def joined_shape(name: str, shards: Sequence[TensorShard]) -> torch.Size:
    """The shape of a whole tensor; SafetensorError if its shards are incomplete.

    It is checked before memory is allocated for a size that a header claims.
    """
    first = shards[0]
    same = all(len(shard.start) == len(shard.shape) == len(first.shape) for shard in shards)
    shape = [max(s.start[d] + s.shape[d] for s in shards) for d in range(len(first.shape))] if same else []
    negative = any(start < 0 for shard in shards for start in shard.start)
    if not same or negative or math.prod(shape) != sum(math.prod(shard.shape) for shard in shards):
        raise SafetensorError(f"the shards of {name} do not make up one tensor")
    return torch.Size(shape)


def join_shards(shape: torch.Size, shards: Sequence[TensorShard]) -> Tensor:
    """Read the shards of a tensor of this shape and join them. Raises OSError or SafetensorError."""
    whole: Tensor | None = None
    for shard in shards:
        with safe_open(shard.path, framework="pt") as file:
            tensor = file.get_tensor(shard.key)
        whole = torch.empty(shape, dtype=tensor.dtype) if whole is None else whole
        whole[tuple(slice(a, a + n) for a, n in zip(shard.start, shard.shape, strict=True))] = tensor
    assert whole is not None
    return whole
