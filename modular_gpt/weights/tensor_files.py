"""Lazy reading of the tensors of a published model from memory-mapped files."""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.weights.hub import Source, Unreachable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OLD_WEIGHTS = "pytorch_model.bin"
OLD_INDEX = "pytorch_model.bin.index.json"


class TensorFile(Protocol):
    """An open file of tensors."""

    def keys(self) -> list[str]: ...
    def shape(self, key: str) -> torch.Size: ...
    def tensor(self, key: str) -> Tensor: ...


class SafeTensors:
    """A file in the safetensors format (https://github.com/huggingface/safetensors).

    Raises:
        CheckpointError: the file cannot be opened or is damaged.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        from safetensors import safe_open

        try:
            self.handle: Any = stack.enter_context(safe_open(str(path), framework="pt"))
        except Exception as error:  # SafetensorError, or an OSError of a file that cannot be opened
            raise CheckpointError(f"'{path}' is damaged or incomplete ({error}); copy or download it again") from error

    def keys(self) -> list[str]:
        return list(self.handle.keys())

    def shape(self, key: str) -> torch.Size:
        return torch.Size(self.handle.get_slice(key).get_shape())

    def tensor(self, key: str) -> Tensor:
        out: Tensor = self.handle.get_tensor(key)
        return out


class OldFile:
    """A file written by ``torch.save``, read without running code.

    Raises:
        CheckpointError: the file is damaged, or holds other objects than tensors by name.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = _load_old(path)
        except Exception as error:  # of pickle, zipfile and the system
            raise CheckpointError(
                f"'{path}' is damaged, or holds other objects than tensors, which are not loaded since they could run"
                " code; use a model.safetensors"
            ) from error
        if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
            raise CheckpointError(f"'{path}' does not hold tensors by name; use a model.safetensors")
        self.tensors = dict(content)

    def keys(self) -> list[str]:
        return list(self.tensors)

    def shape(self, key: str) -> torch.Size:
        out: torch.Size = self.tensors[key].shape
        return out

    def tensor(self, key: str) -> Tensor:
        out: Tensor = self.tensors[key]
        return out


class LazyTensor(Protocol):
    """A tensor that is read, or computed from others, when it is loaded."""

    @property
    def shape(self) -> torch.Size: ...
    def load(self) -> Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; key: its name there."""

    file: TensorFile
    key: str

    @property
    def shape(self) -> torch.Size:
        return self.file.shape(self.key)

    def load(self) -> Tensor:
        return self.file.tensor(self.key)


# A function that renames, removes or combines lazy tensors
View = Callable[[Mapping[str, LazyTensor]], dict[str, LazyTensor]]


def _load_old(path: Path) -> Any:
    import zipfile

    # files older than PyTorch 1.6 are not zip archives and cannot be memory-mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


class Tensors:
    """The tensors of a model by name, in one file or several; a context manager that closes the files."""

    def __init__(self, source: Source) -> None:
        """Open the files of a model.

        Raises:
            CheckpointError: a file is missing or damaged, or the index names tensors that the files lack.
            Unreachable: a file is not in the local cache, and the hub cannot be reached.
        """
        self._stack = ExitStack()
        self._tensors: dict[str, LazyTensor] = {}
        try:
            self._open(source)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, source: Source) -> None:
        unreachable = None
        for name in (WEIGHTS, INDEX, OLD_WEIGHTS, OLD_INDEX):
            try:
                path = source.file(name)
            except Unreachable as error:  # another of the names may be in the cache
                unreachable = unreachable or error
                continue
            if path is not None:
                return self._add_shards(source, name) if path.suffix == ".json" else self._add(path)
        raise unreachable or CheckpointError(
            f"{source.name!r} has neither {WEIGHTS} nor {OLD_WEIGHTS}; give the folder of a model"
        )

    def _add(self, path: Path) -> None:
        file: TensorFile = SafeTensors(path, self._stack) if path.suffix == ".safetensors" else OldFile(path)
        self._tensors |= {key: StoredTensor(file, key) for key in file.keys()}  # noqa: SIM118

    def _add_shards(self, source: Source, index: str) -> None:
        weight_map = (source.json(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{index} of {source.name!r} has no weight_map; copy or download it again")
        for name in sorted(set(weight_map.values())):
            path = source.file(name) if Path(name).name == name and name.isprintable() else None
            if path is None:
                raise CheckpointError(
                    f"{source.name!r} has no file {printable(name)!r}, which its {index} names; copy it there"
                )
            self._add(path)
        missing = sorted(set(weight_map) - set(self._tensors))
        if missing:
            raise CheckpointError(
                f"the files of {source.name!r} lack tensors that {index} names: {listed(missing)}; copy or download"
                " them again"
            )

    def apply(self, view: View) -> None:
        """Replace the tensors by a view of them."""
        self._tensors = view(self._tensors)

    def keys(self) -> set[str]:
        return set(self._tensors)

    def numel(self) -> int:
        """Number of elements of all tensors together."""
        return sum(tensor.shape.numel() for tensor in self._tensors.values())

    def shape(self, key: str) -> torch.Size:
        return self._tensors[key].shape

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key].load()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
        self._tensors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listed(names: list[str], limit: int = 20) -> str:
    """Format names in one line: the first ``limit`` of them by ``printable``, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more


def as_os_error(error: Exception) -> OSError:
    """Convert a SafetensorError to an OSError with the errno in its message; an OSError is returned unchanged."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), str(error)) if number else OSError(str(error))
