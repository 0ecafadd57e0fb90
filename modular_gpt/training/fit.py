"""``fit``: the training loop of ``mgpt-train`` for a model and data that are objects of a program or a notebook."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.data import PreparedData, Tokenizer
from modular_gpt.distributed import build_parallel
from modular_gpt.model import GPTModel
from modular_gpt.optim import build_optimizer
from modular_gpt.optim.parameter_patterns import freeze
from modular_gpt.runtime.cpu_allocator import keep_memory
from modular_gpt.runtime.device import check_precision, choose_device, float32_products, prepare_device
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.runtime.signals import raise_on_sigterm
from modular_gpt.training.build import check_data, resolve_precision
from modular_gpt.training.checkpointing import Checkpoints
from modular_gpt.training.compile import ordered_sums
from modular_gpt.training.config import RunConfig
from modular_gpt.training.fit_checkpoint import (
    changed_modules,
    earlier_entries,
    latest,
    load_weights,
    open_directory,
    recorded_settings,
    resume,
)
from modular_gpt.training.fit_data import FitData, read_data
from modular_gpt.training.fit_settings import run_config
from modular_gpt.training.forward import Placement
from modular_gpt.training.history import History
from modular_gpt.training.notebook import NotebookRecorder
from modular_gpt.training.run import actionable_errors
from modular_gpt.training.run_directory import RunFiles
from modular_gpt.training.trainer import STEP_SAVED, Save, Trainer, nothing

STEP_KEPT = "this step is finished, and the model keeps it"
LOOP = """train other modules by PyTorch's loop:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for x, y in loader:
        loss = model(x, y)[1]; loss.backward(); optimizer.step(); optimizer.zero_grad()"""


def fit(
    model: GPTModel,
    data: object,
    tokenizer: object = None,
    *,
    validation: object = None,
    epochs: float | None = None,
    checkpoint: str | Path | None = None,
    **settings: object,
) -> History:
    """Train a model in place, and return the history of its metrics.

    The loop is that of ``mgpt-train``: the same text and settings give bitwise the same weights. Ctrl-C ends it early;
    the model keeps the weights of the last step, and the history is returned. Afterwards the model is in evaluation
    mode, and ``model.tokenizer`` is the tokenizer of the data, if there is one.

    Args:
        model: a GPTModel with float32 weights; its modules may have been replaced
        data: a text, a Path of one, a list of texts, token ids (a list, an array, a tensor), a list of records, a torch
            Dataset or a DataLoader; a row is (ids, targets), a dict with input_ids and labels, or ids
        tokenizer: a Tokenizer, or its name or settings; text needs one, unless the model has one
        validation: data likewise, or the fraction of ``data`` that is model_tokenizer out; None: nothing is evaluated
        epochs: passes over the data, one by default; ``max_steps`` counts updates instead
        checkpoint: a directory; the same call resumes the training in it bitwise, and ``load_model`` opens it
        settings: those of TrainerConfig, of the optimizer and of the schedule by their names, such as ``max_steps``,
            ``batch_size`` and ``learning_rate``; ``optim``, ``schedule``, ``seed``; ``quiet=True`` shows nothing

    Raises:
        ConfigError: the model is no GPTModel, or a setting is unknown, cannot work or has no effect.
        DataError: there is too little data, or it does not fit the model.
        CheckpointError: the checkpoint is of another model or training, or damaged; or the disk is full.
    """
    check_model(model)
    given = settings.get("gradient_accumulation")
    micro_batches = given if isinstance(given, int) else 1
    model_tokenizer = model.tokenizer if isinstance(model.tokenizer, Tokenizer) else None
    read = read_data(data, validation, tokenizer, model_tokenizer, micro_batches)
    quiet = bool(settings.pop("quiet", False))
    config = run_config(model.config, read.data, epochs, checkpoint is not None, settings)
    return _train(model, read, config, checkpoint, quiet)


def _train(model: GPTModel, read: FitData, config: RunConfig, checkpoint: str | Path | None, quiet: bool) -> History:
    """Train with the arguments of ``fit`` after they were read."""
    check_data(read.data, model.config)
    keep_memory()
    with ExitStack() as contexts:
        files = contexts.enter_context(open_directory(checkpoint))
        contexts.enter_context(_restored_mode(model))
        device = contexts.enter_context(_prepared_device(config))
        session = _Session(model, read.data, read.tokenizer, config, device, files)
        history = session.run(quiet)
    if read.tokenizer is not None:
        model.tokenizer = read.tokenizer
    if session.trainer.stop.signal == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    return history


def check_model(model: object) -> None:
    """Raise a ConfigError for an object that ``fit`` cannot train."""
    if isinstance(model, GPTModel):
        wrong = next((p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
        if wrong is not None:
            raise ConfigError(
                f"the model's weights are {wrong}, and training keeps them in float32: model.float() first"
            )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("no parameter of the model requires a gradient: model.requires_grad_(True) first")
        return
    inner = getattr(model, "model", None)
    if isinstance(inner, GPTModel):
        raise ConfigError(f"fit trains a GPTModel, got a {type(model).__name__}: give the GPTModel in it, .model")
    if isinstance(model, torch.nn.Module):
        raise ConfigError(f"fit trains a GPTModel, got a {type(model).__name__}; {LOOP}")
    raise ConfigError(f"fit trains a GPTModel, got a {type(model).__name__}: GPTModel(...) or load_model(...).model")


@contextmanager
def _restored_mode(model: GPTModel) -> Iterator[None]:
    """Context manager: afterwards the model is in evaluation mode, and parameters frozen inside are trainable again."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(True).grad = None


@contextmanager
def _prepared_device(config: RunConfig) -> Iterator[torch.device]:
    """Context manager: yields the prepared device of a training; restores the state of PyTorch's generators."""
    if ProcessGroup.launched().world > 1:
        raise ConfigError(
            "fit trains in one process, and torchrun started several: use mgpt-train, or train(RunConfig)"
        )
    device = choose_device(config.trainer.device)
    precision = str(config.trainer.precision)
    check_precision(precision, device)
    prepare_device(config.trainer.threads)
    devices = [device] if device.type == "cuda" else []
    with raise_on_sigterm(), float32_products(precision, device), torch.random.fork_rng(devices):
        yield device


def no_save(required: bool) -> None:
    """Save nothing."""


NO_CHECKPOINTS: tuple[Save, Callable[[], None], Callable[[], None]] = (no_save, nothing, nothing)  # save, poll, close


class _Session:
    """One call of ``fit``: the trainer, new or restored from a checkpoint, and the directory that it writes to."""

    def __init__(
        self,
        model: GPTModel,
        data: PreparedData,
        tokenizer: Tokenizer | None,
        config: RunConfig,
        device: torch.device,
        files: RunFiles | None,
    ) -> None:
        self.config, self.files, self.tokenizer = config, files, tokenizer
        parallel = build_parallel("none", ProcessGroup())
        self.checkpoint = latest(files)
        placement = Placement(device, str(config.trainer.precision), parallel)
        placement = resolve_precision(placement, config, model.config, self.checkpoint)
        torch.manual_seed(config.seed)
        if self.checkpoint is not None:
            load_weights(model, data, self.checkpoint)
        freeze(model, config.trainer.frozen)
        model = parallel.shard_model(model, device, placement.precision)
        self.trainer = Trainer(model, build_optimizer(config.optim, model), data, tokenizer, config, placement)
        if self.checkpoint is not None:
            resume(self.trainer, self.checkpoint)

    def run(self, quiet: bool) -> History:
        """Train to the last step or until a signal, and return the history."""
        trainer, files, history, log = self.trainer, self.files, History(), None
        save, poll, close = NO_CHECKPOINTS
        if files is not None:
            log, history.entries = earlier_entries(files, trainer)
            checkpoints = Checkpoints(files, trainer, recorded_settings(self.config, self.tokenizer))
            save, poll, close = checkpoints.save, checkpoints.poll, checkpoints.close
        done = trainer.progress
        if done.step == trainer.config.max_steps or (done.step and done.seconds >= trainer.config.time_limit):
            return history
        recorder = NotebookRecorder(history, trainer.config.max_steps, trainer.progress.step, quiet, log)
        for line in self.opening():
            recorder.say(line)
        try:
            with actionable_errors(self.config, trainer), ordered_sums(trainer.forward.compiled):
                finished = trainer.fit(recorder, save, STEP_KEPT if files is None else STEP_SAVED, poll)
        finally:
            close()
            recorder.close()
            self.keep_average()
            if files is not None:
                files.flush()
        history.interrupted = not finished
        return history

    def opening(self) -> list[str]:
        """Lines before the first step: the step of a resumed training, and modules that its checkpoints cannot hold."""
        step = self.trainer.progress.step
        lines = [f"Resumed from step {step:,} of {self.files.directory}"] if self.files is not None and step else []
        changed = [] if self.files is None else changed_modules(self.trainer.model)
        if changed:
            lines.append(
                f"The model's config does not describe {', '.join(changed[:5])}: this training can be resumed from its"
                " checkpoints, but load_model cannot open them"
            )
        return lines

    def keep_average(self) -> None:
        """Copy the moving average of the weights, which is evaluated and saved, into the model, if there is one."""
        trainer = self.trainer
        if trainer.ema is not None:
            with trainer.ema.shown():
                weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            trainer.load_weights(weights)
