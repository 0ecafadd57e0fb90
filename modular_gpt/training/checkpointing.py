"""Checkpoints of a training: their content, which of them are kept, and how a training resumes from one."""

import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from modular_gpt.checkpoint import BEST, FOLDER, LATEST, META, STEP, CheckpointReader, save_checkpoint
from modular_gpt.core.atomic_files import link, remove_stale, resolve_link
from modular_gpt.core.errors import CheckpointError, ConfigError, first_line, printable
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.validation import from_mapping
from modular_gpt.distributed import Tensors
from modular_gpt.distributed.sharded_checkpoint import write_shards
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training.background import BackgroundSaves, Saved, Work
from modular_gpt.training.lora import ADAPTERS, NEW_WEIGHTS
from modular_gpt.training.run_directory import RunFiles
from modular_gpt.training.trainer import Progress, Trainer

TRAINING_FORMAT = 1
OPTIMIZER, TRAINER = "optimizer", "trainer"  # sets of tensors beside the model's
TRAINED = "trained"  # the set of the weights that training updates, where the model's set holds their averages
RANDOM, AVERAGE = "random", "average/"  # names of tensors in the trainer's set
# fields of a checkpoint's metadata that resuming needs, and their types
REQUIRED_META = {
    "data": Mapping,
    "order": Mapping,
    "optimizer": str,
    "progress": Mapping,
    "averaged_steps": int,
    "scaler": Mapping,
}

IN_MEMORY = "in_memory"  # name of the data in the recorded settings of ``fit``, whose data was given as an object

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: ``step_00000100`` and so on, ``latest`` and ``best``."""

    def __init__(self, files: RunFiles, trainer: Trainer, settings: PlainDict) -> None:
        """settings: of the run, as ``RunConfig.record`` returns them; every checkpoint stores them"""
        self.files, self.folder = files, files.directory / FOLDER
        self.trainer, self.settings = trainer, settings
        self.processes = trainer.parallel.processes
        self.background: BackgroundSaves[Progress] = BackgroundSaves(self.processes, trainer.config.async_save)
        self.writers = Writers(self.processes, trainer.config.async_save and trainer.parallel.sharded_checkpoints)
        progress = trainer.progress
        # step and evaluation of the newest checkpoint on disk, at first the one that the run resumes from
        self.saved = (progress.step, progress.evaluated) if progress.step else None
        self.best = progress.best_loss, progress.best_step  # of the checkpoints on disk
        if self.processes.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self.folder, seconds=0)

    def save(self, required: bool = True) -> None:
        """Write a checkpoint of this step unless it exists, update the links and delete old checkpoints. Collective.

        All processes wait until the first one has finished, without a timeout. With ``trainer.async_save`` they wait
        for the save before, and for this one only if it is ``required``.

        Raises:
            CheckpointError: a ``required`` checkpoint cannot be written; older ones are untouched. The failure of any
                other checkpoint is only logged.
        """
        self.settle(self.background.finish(), required=False)
        progress = replace(self.trainer.progress)
        if self.processes.is_main:
            self.files.warn_if_deleted()
        if (progress.step, progress.evaluated) == self.saved:
            self.background.start(progress, partial(self.complete, progress))
        else:
            with self.trainer.eval_weights():
                meta, tensors = training_state(self.trainer)
                write = self.prepare_write(progress.step, meta, {"model": self.trainer.weights(), **tensors})
                self.background.start(progress, partial(self.complete, progress, write))
        if required or not self.background.enabled:
            self.settle(self.background.finish(), required)

    def complete(self, progress: Progress, write: Work | None = None) -> None:
        """Call ``write`` unless it is None; then the first process updates the links and deletes old checkpoints."""
        if write is not None:
            write()
        if self.processes.is_main:
            self.update_links(progress)
            self.prune(progress)

    def poll(self) -> None:
        """Called after each step: record the outcome of a background save that has finished."""
        self.settle(self.background.poll(), required=False)

    def close(self) -> None:
        """After an error: wait for a background save and discard its outcome."""
        self.background.close()

    def settle(self, ended: Saved[Progress] | None, required: bool) -> None:
        """Record the outcome of a save. A problem is raised as a CheckpointError if ``required``, else logged."""
        if ended is None:
            return
        saved, problem = ended
        if not problem:
            self.saved = (saved.step, saved.evaluated)
            self.best = saved.best_loss, saved.best_step
            return
        if required:
            raise CheckpointError(problem)
        progress = self.trainer.progress
        if progress.best_step == saved.best_step:
            progress.best_loss, progress.best_step = self.best  # the weights of the better loss are not on disk
        if self.processes.is_main:
            log.warning("step %s: %s; the training continues, and the next save is tried", saved.step, problem)

    def prepare_write(self, step: int, meta: PlainDict, sets: dict[str, Tensors]) -> Work:
        """Collect the tensors of a checkpoint and return the function that writes it. Collective.

        The first process writes full tensors, or with sharded checkpoints every process the shards that it holds.
        """
        trainer, parallel, background = self.trainer, self.trainer.parallel, self.background
        small, shards = {TRAINER: background.staged(sets.pop(TRAINER))}, None
        if parallel.sharded_checkpoints:
            named = {f"{name}/{key}": tensor for name, tensors in sets.items() for key, tensor in tensors.items()}
            shards = Shards(background.staged(named), self.writers)
        else:
            small |= {name: background.staged(parallel.gather(tensors)) for name, tensors in sets.items()}
        if not self.processes.is_main:
            return (lambda: None) if shards is None else shards.follow
        meta = deepcopy({**meta, "run": self.settings})

        def write() -> None:
            try:
                save_checkpoint(
                    self.path(step),
                    trainer.model,
                    trainer.tokenizer,
                    meta=meta,
                    weights=small.pop("model", None),
                    tensors=small,
                    write_shards=None if shards is None else shards.write,
                )
            finally:
                if shards is not None:
                    shards.release()

        return write

    def update_links(self, progress: Progress) -> None:
        """Point ``latest``, and ``best`` if this step is the best, to the checkpoint of ``progress``."""
        try:
            link(self.folder / LATEST, self.path(progress.step).name, set_aside=True)
            if progress.best_step == progress.step:
                link(self.folder / BEST, self.path(progress.step).name, set_aside=True)
        except OSError as error:
            raise CheckpointError(
                f"'{self.path(progress.step)}' is saved, but not noted as the latest ({error.strerror})"
            ) from error

    def path(self, step: int) -> Path:
        """The directory of the checkpoint of a step."""
        return self.folder / f"{STEP}{step:08}"

    def prune(self, progress: Progress) -> None:
        """Delete all checkpoints but the newest ``keep``, the best and the milestones.

        Checkpoints of later steps than ``progress``, which a run that was rewound has left, are deleted too.
        """
        config = self.trainer.config
        steps = steps_in(self.folder)
        present = [step for step in steps if step <= progress.step]
        milestones = {step for step in present if config.keep_every and step % config.keep_every == 0}
        kept = {*present[-config.keep :], *milestones, progress.best_step}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)


class Writers:
    """The processes that write shards; if their threads write, with a channel and a group for these threads alone."""

    def __init__(self, processes: ProcessGroup, in_thread: bool) -> None:
        self.processes = processes.channel("shards") if in_thread else processes
        self.group = dist.new_group(backend="gloo") if in_thread else None


class Shards:
    """Sharded tensors: each process writes its shards into the directory that the first process names."""

    def __init__(self, tensors: Tensors, writers: Writers) -> None:
        self.tensors, self.processes, self.group = tensors, writers.processes, writers.group
        self.named = False

    def write(self, folder: Path) -> None:
        """In the first process: send ``folder`` to the others and write into it."""
        self.named = True
        write_shards(self.tensors, Path(self.processes.run_on_main(lambda: str(folder))), self.group)

    def follow(self) -> None:
        """In the other processes: write into the directory that the first one names, which also reports errors."""
        folder = self.processes.run_on_main(str)
        with suppress(OSError):
            if folder:
                write_shards(self.tensors, Path(folder), self.group)

    def release(self) -> None:
        """In the first process: end the wait of the others if it failed before it named a directory."""
        if not self.named:
            self.processes.wait_for_main()


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in ascending order."""
    names = (path.name[len(STEP) :] for path in folder.glob(f"{STEP}*"))
    return sorted(int(name) for name in names if name.isdigit())


def check_rewind(checkpoint: Path, resume: Path, rewind: bool) -> None:
    """Check that resuming deletes no later checkpoint of the run unless ``rewind`` allows it.

    checkpoint: the directory to resume from; resume: the path that the user gave, which may name the run or a link

    A run given by its directory or by ``latest`` is not rewound: checkpoints beyond ``latest`` were given up before.

    Raises:
        ConfigError: there are later checkpoints, and ``rewind`` is false.
    """
    folder = checkpoint.parent
    if rewind or resume.name == LATEST or resolve_link(resume).name != checkpoint.name:
        return
    last = resolve_link(folder / LATEST).name
    steps = [step for step in steps_in(folder) if step > step_of(checkpoint)]
    if last.removeprefix(STEP).isdigit():
        steps = [step for step in steps if step <= int(last.removeprefix(STEP))]
    if steps:
        best = resolve_link(folder / BEST).name
        names = [f"{STEP}{step:08}" for step in steps]
        later = ", ".join(f"{name} (the best)" if name == best else name for name in names)
        raise ConfigError(
            f"to resume from '{checkpoint}' deletes the later checkpoints of its run, {later}: add rewind=true to give"
            f" them up, resume the run itself, or start a new run with init_from={checkpoint}"
        )


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's directory; 0 if it has another name."""
    number = path.name.removeprefix(STEP)
    return int(number) if number.isdigit() else 0


def training_state(trainer: Trainer) -> tuple[PlainDict, dict[str, Tensors]]:
    """The state of a training besides the weights to evaluate: the metadata, and sets of tensors by name."""
    progress = asdict(trainer.progress)
    if math.isinf(trainer.progress.best_loss):
        progress["best_loss"] = None  # JSON has no infinity
    meta = {
        "training": TRAINING_FORMAT,
        "step": trainer.progress.step,
        "progress": progress,
        "optimizer": trainer.optimizer.config.name,
        "data": trainer.data.identity,
        "order": trainer.order,
        "compiled": trainer.forward.compiled,
        "precision": trainer.precision,
        "averaged_steps": trainer.averages.steps,
        "scaler": trainer.scaler.state_dict(),
    }
    sums = {f"{AVERAGE}{name}": value for name, value in trainer.averages.sums.items()}
    optional_sets = {} if trainer.ema is None else {TRAINED: trainer.ema.held}
    if trainer.adapters is not None:
        optional_sets[ADAPTERS] = trainer.adapters.state()
        meta[NEW_WEIGHTS] = trainer.adapters.new_weights
    return meta, {
        **optional_sets,
        OPTIMIZER: trainer.optimizer.state(),
        TRAINER: {RANDOM: torch.get_rng_state(), **sums},
    }


def restore(trainer: Trainer, reader: CheckpointReader) -> None:
    """Restore the state of a training from a verified checkpoint whose weights the model has already.

    Raises:
        CheckpointError: the checkpoint holds no training, or one with other parameters or settings.
        DataError: the data or the tokenizer has changed.
    """
    meta, directory = reader.meta, reader.directory
    check_meta(meta, directory)
    trainer.data.check_identity(meta["data"])
    check_settings(trainer, meta, directory)
    trainer.progress = recorded_progress(meta["progress"], directory)
    if not best_exists(directory, trainer.progress.best_step):
        trainer.progress.best_loss, trainer.progress.best_step, trainer.progress.best_accuracy = math.inf, 0, None
    averaged = averages_weights(meta.get("run"))
    trainer.parallel.load(trainer.model, reader.required(TRAINED) if averaged else reader.stored(TRAINED))
    updated = trainer.progress.step > trainer.progress.skipped_in_all  # before the first update there is no state
    with loading_state(directory / f"{OPTIMIZER}.safetensors"):
        trainer.optimizer.load_state(reader.required(OPTIMIZER) if updated else reader.stored(OPTIMIZER))
    tensors = reader.required_tensors(TRAINER)
    with loading_state(directory / f"{TRAINER}.safetensors"):
        torch.set_rng_state(tensors.pop(RANDOM))
    trainer.averages.sums = {key.removeprefix(AVERAGE): t.to(trainer.device) for key, t in tensors.items()}
    trainer.averages.steps = meta["averaged_steps"]
    if meta["scaler"]:  # empty if the run was not in fp16 before: the scaler then begins anew
        with loading_state(directory / META):
            trainer.scaler.load_state_dict(meta["scaler"])
    restore_compiled(trainer, bool(meta.get("compiled", False)))


def check_meta(meta: PlainDict, directory: Path) -> None:
    """Raise a CheckpointError if the metadata of a checkpoint is not that of a training."""
    if meta.get("training") != TRAINING_FORMAT:
        raise CheckpointError(f"'{directory}' holds a model but no training to resume")
    missing = [name for name in REQUIRED_META if name not in meta]
    if missing:
        raise CheckpointError(f"'{directory / META}' lacks {', '.join(missing)}: use another checkpoint of the run")
    wrong = [
        f"{name}={printable(repr(meta[name]))}"
        for name, expected in REQUIRED_META.items()
        if not isinstance(meta[name], expected)
    ]
    if wrong:
        raise CheckpointError(f"'{directory / META}' has {', '.join(wrong)}: use another checkpoint of the run")


def recorded_progress(recorded: PlainMapping, directory: Path) -> Progress:
    """The progress recorded in a checkpoint's metadata. Raises a CheckpointError if it cannot be read."""
    none = {"best_loss"} if recorded.get("best_loss") is None else set()  # JSON has no infinity, the default
    try:
        return from_mapping(Progress, {name: recorded[name] for name in recorded if name not in none}, "progress")
    except ConfigError as error:
        raise CheckpointError(f"'{directory / META}' cannot be used ({error}): use another checkpoint") from error


def averages_weights(run: object) -> bool:
    """Whether ``run``, the settings recorded in a checkpoint, enables the moving average of the weights."""
    trainer = run.get("trainer") if isinstance(run, Mapping) else None
    return isinstance(trainer, Mapping) and trainer.get("ema_decay") is not None


@contextmanager
def loading_state(path: Path) -> Iterator[None]:
    """Context manager: an error of loading a state becomes a CheckpointError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise CheckpointError(
            f"'{path}' holds the state of another training ({first_line(error)}): use another checkpoint of the run"
        ) from error


def restore_compiled(trainer: Trainer, compiled: bool) -> None:
    """With ``trainer.compile=auto``, compile or not as the run did when it began."""
    if trainer.forward.optional and trainer.forward.compiled != compiled:
        trainer.forward.prepare(compiled)
        trainer.reasons["compile"] = "the run began with it"


def check_settings(trainer: Trainer, meta: PlainDict, directory: Path) -> None:
    """Raise a CheckpointError for a setting that cannot change within a run."""
    before = {**meta["order"], "optim": meta["optimizer"]}
    current = {**trainer.order, "optim": trainer.optimizer.config.name}
    changed = [f"{name}={value}" for name, value in before.items() if current.get(name) != value]
    if changed:
        raise CheckpointError(
            f"'{directory}' was trained with {', '.join(changed)}: resume with that, or start a new run without resume"
        )


def best_exists(directory: Path, step: int) -> bool:
    """Whether the checkpoint of the best step, ``step``, still exists beside ``directory``; true if there is none."""
    return step == 0 or (directory.parent / f"{STEP}{step:08}").is_dir()


def run_directory_of(path: Path) -> Path | None:
    """The directory of the run that ``path`` names, or that holds the checkpoint ``path``; None if there is no run."""
    path = resolve_link(path).absolute()
    if (path / FOLDER).is_dir():
        run = path
    elif FOLDER in (path.name, path.parent.name):
        run = path.parent if path.name == FOLDER else path.parent.parent
    else:
        return None
    return run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
