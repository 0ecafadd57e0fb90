"""Checkpoints: a directory with a model, its tokenizer and a manifest that notices every damaged byte.

    config.json         the model's config, every default spelled out
    model.safetensors   its weights
    tokenizer.json      what turns text into its ids, where given
                        (or shard-*.safetensors, of which each process of a training wrote its own)
    meta.json           whatever the writer wants to remember: the step, the loss, the data's fingerprint
    manifest.json       size and SHA-256 of each file

Nothing in it can name or carry code. Other files (an optimizer's state) may stand beside these.
"""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modular_gpt.checkpoint.sharded import FILES, read_shards
from modular_gpt.core.atomic_files import new_directory, resolve_link, sha256_file
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig

FORMAT = 1
MANIFEST, CONFIG, MODEL, META, TOKENIZER = (
    "manifest.json", "config.json", "model.safetensors", "meta.json", "tokenizer.json")  # fmt: skip
FOLDER, STEP, BEST, LATEST = "checkpoints", "step_", "best", "latest"  # of a run: checkpoints/step_000100 ...

log = logging.getLogger(__name__)


class Savable(Protocol):
    """A tokenizer, as far as saving it goes."""

    def save(self, directory: Path) -> None: ...


class Checkpoint(NamedTuple):
    """What a checkpoint holds; ``tokenizer`` is None where it was saved without one."""

    model: GPTModel
    tokenizer: Tokenizer | None
    meta: dict[str, Any]


def save_checkpoint(
    directory: str | Path,
    model: GPTModel,
    tokenizer: Savable | None = None,
    *,
    meta: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    pieces: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint; until it is whole and on the disk, what stood there before stays.

    tensors: further sets of tensors by name, each written to ``<name>.safetensors``
    weights: the model's ``state_dict``, where the model at hand holds only a part of each tensor
    pieces: writes the weights and more sets in pieces, as ``read_shards`` reads them, into the directory it is given

    Raises:
        CheckpointError: the disk is full or cannot be written; the message says how many bytes are needed.
    """
    directory = Path(directory)
    sets = dict(tensors or {})
    if pieces is None:
        sets["model"] = model.state_dict() if weights is None else weights
    needed = sum(tensor.nbytes for each in sets.values() for tensor in each.values()) + 2**16
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(directory.parent).free < needed:
            raise OSError(errno.ENOSPC, "the disk is full")
        with new_directory(directory) as new:
            if pieces is not None:
                pieces(new)
            for name, each in sets.items():
                plain = {key: tensor.detach().cpu().contiguous() for key, tensor in each.items()}
                save_file(plain, new / f"{name}.safetensors", metadata={"format": "pt"})
            _write_json(new / CONFIG, model.config.to_dict())
            _write_json(new / META, meta or {})
            if tokenizer is not None:
                tokenizer.save(new)
            _write_manifest(new)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot save '{directory}' ({reason}; it takes {needed:,} bytes):"
            " make room on that disk; the checkpoints saved before are untouched"
        ) from error
    return directory


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """The model (in evaluation mode), tokenizer and notes of a checkpoint.

    path: a checkpoint; or a run's directory, for its best checkpoint; or what ``latest`` there leads to

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint of this program; names the file.
    """
    directory = find_checkpoint(path)
    model = build_model(directory)
    try:
        tokenizer = Tokenizer.load(directory) if (directory / TOKENIZER).is_file() else None
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return Checkpoint(model.to(device).eval(), tokenizer, read_json(directory / META))


def find_checkpoint(path: str | Path, prefer: str = BEST) -> Path:
    """The verified checkpoint that a path stands for.

    In a run's directory it is the ``prefer``-red one, and where that is damaged or missing the newest that is whole,
    which the log then says.

    Raises:
        CheckpointError: there is none.
    """
    path = resolve_link(Path(path))
    if path.is_file():
        raise CheckpointError(_about_file(path))
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at '{path}'{_others(path)}")
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if not (folder / MANIFEST).exists() and (candidates := list(_candidates(folder, prefer))):
        return _first_whole(candidates)
    verify(path)
    return path


def _candidates(folder: Path, prefer: str) -> Iterator[Path]:
    """The checkpoints of a run, the best guess first."""
    seen = set()
    steps = sorted(folder.glob(f"{STEP}[0-9]*"), key=lambda p: (len(p.name), p.name), reverse=True)
    for path in [resolve_link(folder / prefer), resolve_link(folder / LATEST), *steps]:
        if path.name not in seen and path.name[len(STEP) :].isdigit():
            seen.add(path.name)
            yield path


def _first_whole(candidates: list[Path]) -> Path:
    first: CheckpointError | None = None
    for path in candidates:
        try:
            verify(path)
        except CheckpointError as error:
            first = first or error
            log.warning("%s", error)
            continue
        if first:
            log.warning("using '%s' instead, the newest checkpoint that is whole", path)
        return path
    assert first
    raise first


def verify(directory: Path) -> None:
    """Raise a CheckpointError, which names the file, unless each file of a checkpoint is as it was written."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint at '{directory}'")
    if not path.is_file():
        raise CheckpointError(
            f"'{directory}' is not a checkpoint of this program: it has no {MANIFEST}"
            " (a checkpoint is a directory that mgpt-train or save_checkpoint wrote)"
        )
    manifest = read_json(path)
    files = manifest.pop("files", None)
    if manifest.pop("sha256", None) != _seal(files) or not isinstance(files, dict):
        raise _damaged(path, "its content does not match its own SHA-256")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"'{path}' has format {manifest.get('format')!r}, this version reads {FORMAT}; update modular_gpt"
        )
    for name in files:
        if Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"'{path}' names the file {name!r}, which lies elsewhere: it is not to be trusted")
    if not ({CONFIG, META} <= files.keys() and (MODEL in files or any(fnmatch(name, FILES) for name in files))):
        raise _damaged(path, f"it does not list {CONFIG}, {MODEL} and {META}")
    for name, facts in files.items():
        if not isinstance(facts, dict) or not isinstance(facts.get("size"), int):
            raise _damaged(path, f"it has no size for {name}")
        _verify_file(directory / name, facts)


def _verify_file(path: Path, facts: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != facts["size"]:
            raise _damaged(path, f"it has {size:,} bytes instead of {facts['size']:,}")
        if sha256_file(path) != facts.get("sha256"):
            raise _damaged(path, "its content is not what was written")
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def build_model(directory: Path) -> GPTModel:
    """The model of a verified checkpoint; draws no random numbers that others would miss."""
    path = directory / MODEL
    weights = read_tensors(directory, "model")
    config = _read_config(directory, most_layers=sum(name.startswith("blocks.") for name in weights))
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes are asked for
            expected = {name: tensor.shape for name, tensor in GPTModel(config).state_dict().items()}
    except (RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(f"'{directory / CONFIG}' describes a model of impossible size") from error
    _compare(path, expected, {name: tensor.shape for name, tensor in weights.items()})
    with torch.random.fork_rng():
        model = GPTModel(config)
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        model.to(kinds.pop())
    model.load_state_dict(weights)
    return model


def _read_config(directory: Path, most_layers: int) -> GPTConfig:
    path = directory / CONFIG
    values = read_json(path)
    layers = values.get("n_layers")
    if isinstance(layers, int) and layers > most_layers:  # before a list of so many is made
        raise CheckpointError(f"'{path}' describes {layers} layers, of which {MODEL} beside it has not as many")
    try:
        return GPTConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"'{path}' does not describe a model that this program has: {error}") from error


def _compare(path: Path, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> None:
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            want, have = (tuple(each[name]) if name in each else "nothing" for each in (expected, found))
            raise CheckpointError(f"'{path}' has {have} for {name} where {CONFIG} beside it asks for {want}")


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors of ``<name>.safetensors``, or of that name in pieces, in a verified checkpoint; {} for none."""
    path = directory / f"{name}.safetensors"
    try:
        if not path.is_file():
            return read_shards(directory, name)
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; a CheckpointError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(path, "it holds no JSON object")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _write_manifest(directory: Path) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(directory.iterdir())
    }
    _write_json(directory / MANIFEST, {"format": FORMAT, "files": files, "sha256": _seal(files)})


def _seal(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"'{path}' is damaged ({reason}): use another checkpoint, or restore it from a copy")


def _about_file(path: Path) -> str:
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        return f"'{path}' is a pickle, which can run any code when it is read: this program never does"
    return f"'{path}' is a file, and a checkpoint is a directory: give the one that it lies in"


def _others(path: Path) -> str:
    """Which runs there are, when a run's directory is misspelt."""
    with suppress(OSError):
        near = sorted(p.name for p in path.parent.iterdir() if (p / FOLDER).is_dir() or (p / MANIFEST).is_file())
        if near:
            return f"; in '{path.parent}' there are: {', '.join(near[-5:])}"
    return "; train a model first with mgpt-train"
