"""Checkpoint directories of ``fit``: checkpoints, metrics and a lock, as in a run's directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modular_gpt.checkpoint import FOLDER, LATEST, MANIFEST, CheckpointReader, open_checkpoint
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import decode, encode
from modular_gpt.data import PreparedData, Tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.model.materialize import check_shapes, meta_model
from modular_gpt.training.checkpointing import IN_MEMORY, restore, steps_in
from modular_gpt.training.config import RunConfig
from modular_gpt.training.metrics import Entry, MetricsLog, read_metrics
from modular_gpt.training.run_directory import RunFiles, lock_run
from modular_gpt.training.trainer import Trainer


@contextmanager
def open_directory(checkpoint: str | Path | None) -> Iterator[RunFiles | None]:
    """Context manager: create and lock the directory of a training, in which no other process may train.

    Raises:
        ConfigError: another process trains in the directory, or it cannot be written.
        CheckpointError: the directory is a single checkpoint.
    """
    if checkpoint is None:
        yield None
        return
    directory = Path(checkpoint).expanduser()
    if (directory / MANIFEST).exists():
        raise CheckpointError(
            f"'{directory}' is one checkpoint: give the directory of a training, or load the model from it first"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"checkpoint={str(directory)!r} cannot be written ({error.strerror})") from error
    with lock_run(directory):
        yield RunFiles(directory)


def latest(files: RunFiles | None) -> CheckpointReader | None:
    """The newest intact checkpoint in a directory, verified; None without a checkpoint."""
    if files is None or not steps_in(files.directory / FOLDER):
        return None
    return open_checkpoint(files.directory, prefer=LATEST)


def load_weights(model: GPTModel, data: PreparedData, reader: CheckpointReader) -> None:
    """Load the weights of a verified checkpoint into a model. After an error the model is unchanged.

    Raises:
        CheckpointError: the checkpoint is of another model.
        DataError: the checkpoint was trained on other data or with another tokenizer.
    """
    current, before = model.config.to_dict(), reader.config.to_dict()
    changed = [f"{name}={value}" for name, value in before.items() if current.get(name) != value]
    if changed:
        raise CheckpointError(
            f"'{reader.directory}' is of a model with {', '.join(changed)}: give that model, or another directory"
        )
    weights = reader.tensors("model")
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_shapes(
        expected, {name: tensor.shape for name, tensor in weights.items()}, f"'{reader.directory}'", "the model"
    )
    data.check_identity(reader.meta.get("data", {}))
    model.load_state_dict(weights)


def resume(trainer: Trainer, reader: CheckpointReader) -> None:
    """Restore the state of a training from a checkpoint whose weights the model has already.

    Raises:
        ConfigError: the checkpoint has done more steps than this training has.
        CheckpointError: a setting that cannot change within a training differs.
    """
    restore(trainer, reader)
    done, steps = trainer.progress.step, trainer.config.max_steps
    if done > steps:
        raise ConfigError(
            f"'{reader.directory}' has done {done} steps, and this training has {steps}: give it more of them"
        )


def earlier_entries(files: RunFiles, trainer: Trainer) -> tuple[MetricsLog, list[Entry]]:
    """The metrics log, to be continued after the trainer's step, and its entries so far."""
    progress = trainer.progress
    return MetricsLog(files, progress.step, progress.evaluated), read_metrics(files.directory)


def recorded_settings(config: RunConfig, tokenizer: Tokenizer | None) -> PlainDict:
    """The settings that a checkpoint records: those of a run, with ``IN_MEMORY`` for the data.

    The tokenizer is recorded if its name alone builds it, else it is None.
    """
    settings = {**config.record(), "data": {"name": IN_MEMORY}}
    del settings["tokenizer"]
    try:
        settings["tokenizer"] = None if tokenizer is None else encode(decode("tokenizer", tokenizer.name))
    except (ConfigError, TypeError):  # the name needs settings, which a Tokenizer does not keep
        settings["tokenizer"] = None
    return settings


def changed_modules(model: GPTModel) -> list[str]:
    """Names of modules and tensors that the model's config does not describe, so that no checkpoint can rebuild them.

    Of a replaced module only its own name is listed, not those inside it.
    """
    built = meta_model(model.config)
    expected = {name: type(module) for name, module in built.named_modules()}
    found = {name: type(module) for name, module in model.named_modules()}
    changed = [name for name in {**expected, **found} if name and expected.get(name) is not found.get(name)]
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    found_shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    changed += [name for name in {**shapes, **found_shapes} if shapes.get(name) != found_shapes.get(name)]
    return [name for name in dict.fromkeys(changed) if not name.startswith(tuple(f"{outer}." for outer in changed))]
