"""Functions that a process runs in a test case: in a pair of processes, and in a single one for comparison."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modular_gpt.core.errors import UserError
from modular_gpt.data import build_corpus, build_tokenizer
from modular_gpt.distributed import Parallel, build_parallel
from modular_gpt.distributed.dtensor import local_tensor
from modular_gpt.model.loss import LossOutput
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training import RunConfig, train
from modular_gpt.training.build import build_trainer
from modular_gpt.training.forward import Placement
from modular_gpt.training.metrics import read_metrics
from modular_gpt.training.trainer import Trainer

Steps = tuple[list[float], list[float], dict[str, Tensor]]  # losses and gradient norms by step, and the final weights


@contextmanager
def trainer_of(settings: dict[str, Any]) -> Iterator[Trainer]:
    """Context manager: the trainer of a run in this process, while its processes are connected."""
    config = RunConfig.from_dict(settings)
    corpus = build_corpus(config.data)
    tokenizer = build_tokenizer(config.tokenizer, corpus)
    data = corpus.prepare(tokenizer)
    processes, cpu = ProcessGroup.launched(), torch.device("cpu")
    precision = "float32" if config.trainer.precision == "auto" else config.trainer.precision
    parallel = build_parallel(config.parallel, processes)
    with processes.connected(cpu, parallel.timeout):
        yield build_trainer(config, data, tokenizer, Placement(cpu, str(precision), parallel))


def steps(settings: dict[str, Any], count: int, change: Any = None, averaged: bool = False) -> Steps:
    """Train for some steps; ``change(trainer)`` may modify the trainer first."""
    with trainer_of(settings) as trainer:
        if change is not None:
            change(trainer)
        losses, norms = [], []
        for _ in range(count):
            trainer.update()
            means = trainer.averages.read()
            losses.append(means.get("loss", math.nan))
            norms.append(means.get("gradient_norm", math.nan))
            trainer.progress.step += 1
        with trainer.eval_weights() if averaged else nullcontext():
            weights = trainer.parallel.gather(trainer.model.state_dict())
            return losses, norms, {name: weight.clone() for name, weight in weights.items()}


def refusal(settings: dict[str, Any]) -> str:
    """The message about invalid settings, or "nothing"."""
    try:
        with trainer_of(settings):
            return "nothing"
    except UserError as error:
        return str(error)


def ragged(trainer: Trainer) -> None:
    """Keep only the first targets of each row, a different number in each row."""
    batch = trainer.batches.batch

    def cut(step: int) -> tuple[Tensor, Tensor]:
        x, y = batch(step)
        lengths = torch.randint(0, y.shape[1] + 1, (len(y), 1), generator=torch.Generator().manual_seed(step))
        lengths[0] = y.shape[1]
        return x, y.masked_fill(torch.arange(y.shape[1]) >= lengths, -100)

    trainer.batches.batch = cut  # type: ignore[method-assign]


def poison(trainer: Trainer, place: str, value: float, rank: int, at: set[int]) -> None:
    """Inject a non-finite value in one process at some steps: in the loss, a gradient or the output of a module."""

    def now() -> bool:
        return trainer.progress.step in at and trainer.parallel.processes.rank == rank

    if place == "gradient":
        trainer.model.blocks[1].ffn.down.register_full_backward_pre_hook(
            lambda module, gradients: (gradients[0] * value,) if now() else None
        )
    elif place == "output":
        trainer.model.blocks[0].attention.value.register_forward_hook(
            lambda module, inputs, output: output.index_fill(-1, torch.tensor([1]), value) if now() else output
        )
    else:
        forward: Any = trainer.forward

        def poisoned(*arguments: Any) -> LossOutput:
            out = forward(*arguments)
            return LossOutput(out.loss + value, out.parts) if now() else out

        poisoned.plain = forward.plain  # type: ignore[attr-defined]
        trainer.forward = trainer.objective.forward = poisoned  # type: ignore[assignment]


def poisoned_steps(settings: dict[str, Any], *poisonings: Any) -> tuple[list[bool], list[str], int, bool]:
    """Run an undisturbed step before, between and after poisoned ones, in one training.

    Returns for each step whether it changed the weights and the cause of its skip, then the number of skipped steps and
    whether all is finite.
    """
    with trainer_of(settings) as trainer:
        for number, (place, value, rank) in enumerate(poisonings):
            poison(trainer, place, value, rank, {2 * number + 1})
        changed, causes = [], []
        for step in range(2 * len(poisonings) + 1):
            before = everything(trainer)
            trainer.progress.step, trainer.cause = step, ""
            trainer.update()
            changed.append(any(not torch.equal(a, b) for a, b in zip(before, everything(trainer), strict=False)))
            causes.append(trainer.cause)
        finite = all(bool(t.isfinite().all()) for t in everything(trainer))
        return changed, causes, trainer.progress.skipped_in_all, finite


def everything(trainer: Trainer) -> list[Tensor]:
    """Copies of the local weights, followed by the local optimizer state if there is any."""
    held = [*trainer.model.state_dict().values(), *trainer.optimizer.state().values()]
    return [local_tensor(tensor).clone() for tensor in held]


def broken_down(settings: dict[str, Any], *poisoning: Any) -> str:
    """Train until the training gives up; returns its message."""
    with trainer_of(settings) as trainer:
        poison(trainer, *poisoning)
        try:
            for _ in range(20):
                trainer.update()
                trainer.progress.step += 1
        except UserError as error:
            return str(error)
    return "nothing"


def whole_run(settings: dict[str, Any], stop: int | None = None) -> tuple[str, dict[int, list[Any]], dict[int, float]]:
    """Train, stopped by a signal in the last process after ``stop`` steps.

    Returns the directory, the rows read by this process at each step, and the losses written by the run.
    """
    update, rows = Trainer.update, Parallel.rows
    read: dict[int, list[Any]] = {}
    step = 0

    def noted(self: Parallel, batch: Tensor, pieces: int) -> list[Tensor]:
        local = rows(self, batch, pieces)
        read.setdefault(step, torch.cat(local).tolist())  # inputs only; targets are in a second call
        return local

    def watched(self: Trainer) -> None:
        nonlocal step
        step = self.progress.step
        update(self)
        processes = self.parallel.processes
        if step + 1 == stop and processes.rank == processes.world - 1:
            self.stop.signal = signal.SIGINT

    Trainer.update, Parallel.rows = watched, noted  # type: ignore[method-assign]
    try:
        directory = train(RunConfig.from_dict(settings), quiet=True).directory
    finally:
        Trainer.update, Parallel.rows = update, rows  # type: ignore[method-assign]
    losses = {int(entry["step"]): entry["loss"] for entry in read_metrics(directory) if "loss" in entry}
    return str(directory), read, losses


def table_of(settings: dict[str, Any]) -> str:
    """The table of a dry run."""
    return str(train(RunConfig.from_dict(settings), quiet=True).table)


def slow_first_process(settings: dict[str, Any], place: str, folder: str) -> int:
    """Train while the first process saves, or samples, until the other one waits for it without a timeout.

    Returns the number of steps.
    """
    from unittest.mock import patch

    from modular_gpt.training import checkpointing
    from modular_gpt.training.validation import Validation

    owner: Any = checkpointing if place == "save_checkpoint" else Validation
    original, receive = getattr(owner, place), ProcessGroup._receive
    begun, waiting = Path(folder) / "begun", Path(folder) / "waiting"

    def slow(*args: Any, **keywords: Any) -> Any:
        begun.touch()
        deadline = time.monotonic() + 100
        while not waiting.exists():
            assert time.monotonic() < deadline, "the other process waits with a timeout, or not at all"
            time.sleep(0.001)
        return original(*args, **keywords)

    def received(self: ProcessGroup, key: str) -> str:
        assert self._store is not None
        while not begun.exists() and not self._store.check([key]):
            time.sleep(0.001)
        if begun.exists():
            waiting.touch()
        return receive(self, key)

    first = ProcessGroup.launched().is_main
    with patch.object(owner, place, slow) if first else patch.object(ProcessGroup, "_receive", received):
        result = train(RunConfig.from_dict(settings), quiet=True)
    assert result.outcome is not None
    return result.outcome.steps


def failing_shards(settings: dict[str, Any], fails: int) -> tuple[list[int], list[str]]:
    """Train while the last process cannot write its shards of one save; returns the saved steps and the log."""
    import logging
    from unittest.mock import patch

    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    from modular_gpt.checkpoint import FOLDER
    from modular_gpt.training.checkpointing import log, steps_in

    original, calls = HuggingFaceStorageWriter.write_data, 0
    processes, messages = ProcessGroup.launched(), []

    def full(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fails and processes.rank == processes.world - 1:
            raise OSError(28, "No space left on device")
        return original(self, *arguments)

    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        with patch.object(HuggingFaceStorageWriter, "write_data", full):
            directory = train(RunConfig.from_dict(settings), quiet=True).directory
    finally:
        log.removeHandler(handler)
    return steps_in(directory / FOLDER), messages
