"""The tensors of a checkpoint by name, each read from its file at its use."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modular_gpt.checkpoint.manifest import damaged
from modular_gpt.checkpoint.sharded import TensorShard, index_shards, join_shards, joined_shape, shard_files


class StoredTensors(Mapping[str, Tensor]):
    """A set of tensors in ``<name>.safetensors`` or in shards; empty if there is no such set.

    shapes: shapes of the tensors, by name
    """

    def __init__(self, directory: Path, files: Collection[str], name: str) -> None:
        """Read the names and shapes; files: the names of files in the manifest

        Raises:
            CheckpointError: a file is damaged; also raised by reading a tensor.
        """
        self.path = directory / f"{name}.safetensors"
        self._shards: dict[str, list[TensorShard]] | None = None
        with self._checked():
            if self.path.name in files:
                self._file = safe_open(self.path, framework="pt")  # mapped into memory as long as this object lives
                names = list(self._file.keys())
                self.shapes = {key: torch.Size(self._file.get_slice(key).get_shape()) for key in names}
            else:
                self._shards = index_shards(shard_files(directory, files), name)
                self.shapes = {key: joined_shape(f"{name}/{key}", shards) for key, shards in self._shards.items()}

    def __getitem__(self, key: str) -> Tensor:
        shape = self.shapes[key]
        with self._checked():
            if self._shards is not None:
                return join_shards(shape, self._shards[key])
            tensor: Tensor = self._file.get_tensor(key)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise damaged(self.path, str(error)) from error
