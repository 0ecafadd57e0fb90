"""Checkpoints: a directory with a model, its tokenizer and a manifest of checksums, which detects any damaged byte.

    config.json         config of the model, with every setting
    model.safetensors   its weights (or shard-*.safetensors, one or more per training process)
    tokenizer.json      the tokenizer, if there is one
    meta.json           notes of the writer: step, loss, settings of the run
    manifest.json       size and SHA-256 of each file

No file can name or contain code. Further sets of tensors, such as the optimizer state, are ``<name>.safetensors``.
"""

import errno
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modular_gpt.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    META,
    MODEL,
    TOKENIZER,
    read_json,
    read_manifest,
    verify_file,
    write_json,
    write_manifest,
)
from modular_gpt.checkpoint.stored_tensors import StoredTensors
from modular_gpt.core.atomic_files import new_directory, resolve_link, write_problem
from modular_gpt.core.checkpoint_paths import FOLDER, no_checkpoint
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import check_shapes, layers_in, meta_model, model_from_tensors
from modular_gpt.weights import as_os_error

STEP, BEST, LATEST = "step_", "best", "latest"  # of a run: checkpoints/step_000100 ...

log = logging.getLogger(__name__)


class Savable(Protocol):
    """An object that can be saved into a checkpoint as its tokenizer."""

    def save(self, directory: Path) -> None: ...


class Checkpoint(NamedTuple):
    """The contents of a checkpoint; ``tokenizer`` is None if it was saved without one."""

    model: GPTModel
    tokenizer: Tokenizer | None
    meta: PlainDict


class CheckpointReader:
    """A checkpoint on disk. Config, notes and tokenizer are read once; only files in the manifest are read.

    ``open_checkpoint`` verifies all files. By default the constructor checks the manifest only, for a process that
    knows that another one has verified the files; ``verify`` checks them later, each file once.
    """

    def __init__(self, directory: Path, *, verified: bool | Collection[str] = False) -> None:
        """Open a checkpoint.

        verified: check every file, or only the files with these names

        Raises:
            CheckpointError: there is no checkpoint, or the manifest or a checked file is damaged.
        """
        self.directory = directory
        self._listed = read_manifest(directory)
        self.files = frozenset(self._listed)
        self._unverified = dict(self._listed)
        if verified:
            self.verify(None if isinstance(verified, bool) else verified)

    def verify(self, only: Collection[str] | None = None) -> None:
        """Check the size and SHA-256 of the files that were not checked yet, or of those with these names.

        Raises:
            CheckpointError: a file is missing or damaged; the message names it.
        """
        for name in [name for name in self._unverified if only is None or name in only]:
            verify_file(self.directory / name, self._unverified[name])
            del self._unverified[name]

    def is_current(self) -> bool:
        """Whether the manifest on disk is still the one that was read."""
        try:
            return read_manifest(self.directory) == self._listed
        except CheckpointError:
            return False

    @cached_property
    def meta(self) -> PlainDict:
        """The notes of the writer."""
        return read_json(self.directory / META)

    @cached_property
    def config(self) -> GPTConfig:
        """The config of the model.

        Raises:
            CheckpointError: it is invalid, or has more layers than the weights.
        """
        path = self.directory / CONFIG
        values = read_json(path)
        layers = values.get("n_layers")
        if isinstance(layers, int) and layers > layers_in(self.stored("model")):  # before they are allocated
            raise CheckpointError(f"'{path}' describes {layers} layers, more than {MODEL} beside it has")
        try:
            return GPTConfig.from_dict(values)
        except ConfigError as error:
            raise CheckpointError(f"'{path}' does not describe a model that this program has: {error}") from error

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the checkpoint has none."""
        if TOKENIZER not in self.files:
            return None
        try:
            return Tokenizer.load(self.directory)
        except DataError as error:
            raise CheckpointError(str(error)) from error

    def model(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> GPTModel:
        """Build the model with its weights, in evaluation mode; draws no random numbers.

        dtype: dtype of the parameters; None: as saved

        Raises:
            CheckpointError: the weights do not match the config, or a file is damaged.
        """
        model = self.meta_model()
        return model_from_tensors(model, dict(self.weights(model)), dtype, device)

    def meta_model(self) -> GPTModel:
        """The model without storage and weights. Raises CheckpointError if its size is impossible."""
        try:
            return meta_model(self.config)
        except ConfigError as error:
            raise CheckpointError(f"'{self.directory / CONFIG}' describes a model of impossible size") from error

    def weights(self, model: GPTModel) -> StoredTensors:
        """The weights of ``meta_model``, each of which is read at its first use.

        Raises:
            CheckpointError: the weights do not match the config, or a file is damaged.
        """
        path = self.directory / MODEL
        weights = self.stored("model")
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        check_shapes(expected, weights.shapes, f"'{path}'", f"{CONFIG} beside it")
        return weights

    def stored(self, name: str) -> StoredTensors:
        """The set of tensors ``name``, each of which is read at its use; empty if there is no such set."""
        return StoredTensors(self.directory, self.files, name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the set of tensors ``name`` from ``<name>.safetensors`` or shards; empty if there is no such set."""
        return dict(self.stored(name))

    def required(self, name: str) -> StoredTensors:
        """A set of tensors as from ``stored``. Raises a CheckpointError if it is missing or empty."""
        tensors = self.stored(name)
        if not tensors:
            raise CheckpointError(
                f"'{self.directory}' has no {name}.safetensors, without which its training cannot resume:"
                " start a new run from its weights with init_from="
            )
        return tensors

    def required_tensors(self, name: str) -> dict[str, Tensor]:
        """Read a set of tensors like ``tensors``. Raises CheckpointError if it is missing or empty."""
        return dict(self.required(name))


def save_checkpoint(
    directory: str | Path,
    model: GPTModel,
    tokenizer: Savable | None = None,
    *,
    meta: PlainMapping | None = None,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    write_shards: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint atomically: an existing one stays until the new one is complete on disk.

    tensors: further sets of tensors by name, each written to ``<name>.safetensors``
    weights: the ``state_dict`` of the model, where the model of this process has only shards of its tensors
    write_shards: writes the weights and further sets as shards, see ``read_shards``, into a given directory

    Raises:
        CheckpointError: the disk is full or cannot be written; the message has the number of bytes needed.
    """
    directory = Path(directory)
    sets = dict(tensors or {})
    if write_shards is None:
        sets["model"] = model.state_dict() if weights is None else weights
    needed = sum(tensor.nbytes for named in sets.values() for tensor in named.values()) + 2**16
    with _new_checkpoint(directory, needed) as new:
        if write_shards is not None:
            write_shards(new)
        for name, named in sets.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in named.items()}
            save_file(plain, new / f"{name}.safetensors", metadata={"format": "pt"})
        write_json(new / CONFIG, model.config.to_dict())
        write_json(new / META, meta or {})
        if tokenizer is not None:
            tokenizer.save(new)
        write_manifest(new)
    return directory


@contextmanager
def _new_checkpoint(directory: Path, needed: int) -> Iterator[Path]:
    """Context manager: a temporary directory that takes the place of ``directory`` at the end.

    needed: bytes that will be written

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(directory.parent).free < needed:
            raise OSError(errno.ENOSPC, "the disk is full")
        with new_directory(directory) as new:
            yield new
    except (OSError, SafetensorError) as error:
        reason, remedy = write_problem(as_os_error(error), directory.parent)
        raise CheckpointError(
            f"cannot save '{directory}' ({reason}; it takes {needed:,} bytes): {remedy};"
            " the checkpoints saved before are untouched"
        ) from error


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Load the model (in evaluation mode), tokenizer and notes of a checkpoint.

    path: a checkpoint, a run's directory (its best checkpoint is loaded), or a link to one of them

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint of this program; the message names the file.
    """
    reader = open_checkpoint(path)
    return Checkpoint(model_with(reader.model(device=device), reader.tokenizer), reader.tokenizer, reader.meta)


def model_with(model: GPTModel, tokenizer: Tokenizer | None) -> GPTModel:
    """Set the model's tokenizer if there is one, so that ``generate`` takes text. Returns the model."""
    model.tokenizer = tokenizer
    return model


def open_checkpoint(
    path: str | Path,
    prefer: str = BEST,
    verified: bool | Collection[str] = True,
    opened: CheckpointReader | None = None,
) -> CheckpointReader:
    """Open the checkpoint at a path and verify its files.

    path: a checkpoint, a run's directory, or a link to one of them
    prefer: link in a run's directory to the checkpoint to open, best or latest; if that checkpoint is damaged or
        missing, the newest intact one is opened, and a warning names it
    verified: True: check every file; names: check only these files, for a caller that reads no others
    opened: a reader that is returned, and verifies the rest of its files, if this checkpoint is the one that it opened

    Raises:
        CheckpointError: there is no intact checkpoint.
    """
    path = resolve_link(Path(path).expanduser())
    if path.is_file():
        raise CheckpointError(_about_file(path))
    if not path.is_dir():
        raise no_checkpoint(path)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if (folder / MANIFEST).exists():
        return _open(path, verified, opened)
    candidates = list(_candidates(folder, prefer))
    if not candidates and (folder != path or folder.name == FOLDER):
        raise CheckpointError(
            f"'{path}' is not a checkpoint: it is a run that saved none before it ended; start a new run"
        )
    if not candidates and (runs := _runs_in(path)):
        raise CheckpointError(f"'{path}' is a folder of runs, not a run: give one of them, such as {runs}")
    return _first_whole(candidates, verified, opened) if candidates else _open(path, verified, opened)


def _open(path: Path, verified: bool | Collection[str], opened: CheckpointReader | None) -> CheckpointReader:
    if opened is None or verified is not True or opened.directory != path or not opened.is_current():
        return CheckpointReader(path, verified=verified)
    opened.verify()
    return opened


def find_checkpoint(path: str | Path, prefer: str = BEST) -> Path:
    """The directory of the checkpoint that ``open_checkpoint`` opens."""
    return open_checkpoint(path, prefer).directory


def _candidates(folder: Path, prefer: str) -> Iterator[Path]:
    """The checkpoints of a run: targets of the links ``prefer`` and ``latest``, then all others, newest first."""
    seen = set()
    steps = sorted(folder.glob(f"{STEP}[0-9]*"), key=lambda p: (len(p.name), p.name), reverse=True)
    steps = [path for path in steps if path.name[len(STEP) :].isdigit()]
    for path in [_target(folder / prefer, steps), _target(folder / LATEST, steps), *steps]:
        if path is not None and path.name not in seen:
            seen.add(path.name)
            yield path


def _target(link: Path, steps: list[Path]) -> Path | None:
    """The target of a link; if a copy replaced the link by a directory, the step with the same manifest."""
    path = resolve_link(link)
    if path != link:
        return path if path.name[len(STEP) :].isdigit() else None
    with suppress(OSError):
        manifest = (path / MANIFEST).read_bytes()
        return next((step for step in steps if (step / MANIFEST).read_bytes() == manifest), path)
    return None


def _first_whole(
    candidates: list[Path], verified: bool | Collection[str], opened: CheckpointReader | None
) -> CheckpointReader:
    first: CheckpointError | None = None
    for path in candidates:
        try:
            reader = _open(path, verified, opened)
        except CheckpointError as error:
            first = first or error
            log.warning("%s", error)
            continue
        if first:
            log.warning("using '%s' instead, the newest intact checkpoint", path)
        return reader
    assert first
    raise first


def build_model(directory: Path) -> GPTModel:
    """Build the model of a verified checkpoint, in evaluation mode."""
    return CheckpointReader(directory).model()


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """Read a set of tensors of a verified checkpoint; empty if there is no such set."""
    return CheckpointReader(directory).tensors(name)


def _about_file(path: Path) -> str:
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        return f"'{path}' is a pickle, which can run any code when it is read: this program never does"
    return f"'{path}' is a file, and a checkpoint is a directory: give the directory that contains it"


def _runs_in(folder: Path) -> str:
    """The paths of the latest runs in a folder, the link to the last one first; empty if it has none."""
    runs = sorted((path for path in folder.iterdir() if (path / FOLDER).is_dir()), key=lambda path: path.name)
    return " or ".join(f"'{path}'" for path in reversed(runs[-2:]))  # the link latest is sorted after the dates
