"""Checkpoints of a training: what is in them, how many stay, and how one goes on from them."""

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modular_gpt.checkpoint import BEST, FOLDER, LATEST, META, STEP, CheckpointReader, save_checkpoint
from modular_gpt.core.atomic_files import link, remove_stale, resolve_link
from modular_gpt.core.errors import CheckpointError
from modular_gpt.distributed import Tensors
from modular_gpt.distributed.sharded_checkpoint import write_pieces
from modular_gpt.training.lora import ADAPTERS, NEW_WEIGHTS
from modular_gpt.training.trainer import Progress, Trainer

FORMAT = 1
OPTIMIZER, TRAINER = "optimizer", "trainer"  # sets of tensors beside the model's
TRAINED = "trained"  # the weights as training has them, where the model's own are averages of them
RANDOM, AVERAGE = "random", "average/"  # names of tensors in the trainer's set


class Checkpoints:
    """The checkpoints of one run: ``step_00000100`` and so on, ``latest`` and ``best``."""

    def __init__(self, run: Path, trainer: Trainer, settings: dict[str, Any]) -> None:
        """settings: of the run, as ``RunConfig.to_dict`` gives them; they travel in each checkpoint."""
        self.folder = run / FOLDER
        self.trainer, self.settings = trainer, settings
        progress = trainer.progress
        self.saved = (progress.step, progress.evaluated) if progress.step else None  # it was resumed from there
        self.is_main = trainer.parallel.processes.is_main
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self.folder, seconds=0)

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one; then drop old ones. The first process does.

        Raises:
            CheckpointError: the disk is full or cannot be written; older checkpoints are untouched.
        """
        progress = self.trainer.progress
        if (progress.step, progress.evaluated) != self.saved:
            with self.trainer.eval_weights():
                meta, tensors = training_state(self.trainer)
                self.write(meta, {"model": self.trainer.weights(), **tensors})
            self.saved = (progress.step, progress.evaluated)
        if self.is_main:
            self.update_links()
            self.prune()

    def write(self, meta: dict[str, Any], sets: dict[str, Tensors]) -> None:
        """Write a checkpoint of this step: whole tensors, or each process what it holds."""
        trainer, parallel = self.trainer, self.trainer.parallel
        small, pieces = {TRAINER: sets.pop(TRAINER)}, None
        if parallel.sharded_checkpoints:
            held = {f"{name}/{key}": tensor for name, each in sets.items() for key, tensor in each.items()}

            def pieces(folder: Path) -> None:
                write_pieces(held, Path(parallel.processes.lead(lambda: str(folder))))

        else:
            small |= {name: parallel.gather(each) for name, each in sets.items()}
        if self.is_main:
            save_checkpoint(
                self.path(trainer.progress.step),
                trainer.model,
                trainer.tokenizer,
                meta={**meta, "run": self.settings},
                weights=small.pop("model", None),
                tensors=small,
                write_shards=pieces,
            )
        elif pieces is not None:
            pieces(self.folder)  # the first process says where

    def update_links(self) -> None:
        """Let ``latest``, and ``best`` where it is that, lead to the checkpoint of this step."""
        progress = self.trainer.progress
        try:
            link(self.folder / LATEST, self.path(progress.step).name, set_aside=True)
            if progress.best_step == progress.step:
                link(self.folder / BEST, self.path(progress.step).name, set_aside=True)
        except OSError as error:
            raise CheckpointError(
                f"'{self.path(progress.step)}' is saved, but not noted as the latest ({error.strerror})"
            ) from error

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"{STEP}{step:08}"

    def prune(self) -> None:
        """Keep the newest few and the best; steps past the present one are from a future that was given up."""
        steps = sorted(step_of(path) for path in self.folder.glob(f"{STEP}*") if path.name[len(STEP) :].isdigit())
        present = [step for step in steps if step <= self.trainer.progress.step]
        kept = {*present[-self.trainer.config.keep :], self.trainer.progress.best_step}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name[len(STEP) :])


def training_state(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """All that a training is besides the weights that are ``judged``: plain values, and sets of tensors."""
    progress = asdict(trainer.progress)
    if math.isinf(trainer.progress.best_loss):
        progress["best_loss"] = None  # JSON has no infinity
    meta = {
        "training": FORMAT,
        "step": trainer.progress.step,
        "progress": progress,
        "optimizer": trainer.optimizer.config.name,
        "data": trainer.data.identity,
        "order": trainer.order,
        "compiled": trainer.forward.compiled,
        "averaged_steps": trainer.averages.steps,
        "scaler": trainer.scaler.state_dict(),
    }
    sums = {f"{AVERAGE}{name}": value for name, value in trainer.averages.sums.items()}
    beside = {} if trainer.ema is None else {TRAINED: trainer.ema.held}
    if trainer.adapters is not None:
        beside[ADAPTERS] = trainer.adapters.state()
        meta[NEW_WEIGHTS] = trainer.adapters.new_weights
    return meta, {
        **beside,
        OPTIMIZER: trainer.optimizer.state(),
        TRAINER: {RANDOM: torch.get_rng_state(), **sums},
    }


def restore(trainer: Trainer, directory: Path) -> None:
    """Put a training where a verified checkpoint left it; the model has its weights already.

    Raises:
        CheckpointError: the checkpoint holds no training, or that of other parameters or settings.
        DataError: the text or the tokenizer has changed.
    """
    reader = CheckpointReader(directory)
    meta = reader.meta
    if meta.get("training") != FORMAT:
        raise CheckpointError(f"'{directory}' holds a model but no training to go on with")
    needed = ("data", "order", "optimizer", "progress", "averaged_steps", "scaler")
    missing = [name for name in needed if name not in meta]
    if missing:
        raise CheckpointError(f"'{directory / META}' lacks {', '.join(missing)}: use another checkpoint of the run")
    trainer.data.check_identity(meta["data"])
    check_settings(trainer, meta, directory)
    progress = meta["progress"]
    if progress["best_loss"] is None:
        progress["best_loss"] = math.inf
    trainer.progress = Progress(**progress)
    if not best_is_there(directory, trainer.progress.best_step):
        trainer.progress.best_loss, trainer.progress.best_step = math.inf, 0
    averaged = meta.get("run", {}).get("trainer", {}).get("ema_decay") is not None
    trainer.parallel.load(trainer.model, reader.required_tensors(TRAINED) if averaged else reader.tensors(TRAINED))
    trainer.optimizer.load_state(reader.required_tensors(OPTIMIZER))
    tensors = reader.required_tensors(TRAINER)
    torch.set_rng_state(tensors.pop(RANDOM))
    trainer.averages.sums = {key.removeprefix(AVERAGE): t.to(trainer.device) for key, t in tensors.items()}
    trainer.averages.steps = meta["averaged_steps"]
    trainer.scaler.load_state_dict(meta["scaler"])
    if trainer.forward.optional and trainer.forward.compiled != meta.get("compiled", False):
        trainer.forward.prepare(meta["compiled"])  # as it was decided when the run began


def check_settings(trainer: Trainer, meta: dict[str, Any], directory: Path) -> None:
    """Raise a CheckpointError for a setting that cannot change within a run."""
    before = {**meta["order"], "optim": meta["optimizer"]}
    now = {**trainer.order, "optim": trainer.optimizer.config.name}
    changed = [f"{name}={value}" for name, value in before.items() if now.get(name) != value]
    if changed:
        raise CheckpointError(
            f"'{directory}' was trained with {', '.join(changed)}: go on with that, or start a new run without resume"
        )


def best_is_there(directory: Path, step: int) -> bool:
    """Whether the best checkpoint that a training remembers still lies beside the one it goes on from."""
    return step == 0 or (directory.parent / f"{STEP}{step:08}").is_dir()


def run_of(path: Path) -> Path | None:
    """The run's directory that a path names, or in which a checkpoint lies; None for a checkpoint on its own."""
    path = resolve_link(path).absolute()
    if (path / FOLDER).is_dir():
        run = path
    elif FOLDER in (path.name, path.parent.name):
        run = path.parent if path.name == FOLDER else path.parent.parent
    else:
        return None
    return run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
