"""One training of a comparison: a function from plain values to plain values, so that any launcher can run it."""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError, UserError, first_line
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data import Corpus, PreparedData, Tokenizer, build_corpus
from modular_gpt.distributed import build_parallel
from modular_gpt.runtime.cpu_allocator import keep_memory
from modular_gpt.runtime.device import check_precision, choose_device, float32_products, prepare_device
from modular_gpt.runtime.environment import environment
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.runtime.signals import raise_for_signal
from modular_gpt.training.build import build_trainer
from modular_gpt.training.compile import ordered_sums
from modular_gpt.training.config import RunConfig
from modular_gpt.training.finetune import open_source, tokenizer_of
from modular_gpt.training.forward import Placement
from modular_gpt.training.metrics import Entry
from modular_gpt.training.recorder import NullRecorder
from modular_gpt.training.run import actionable_errors
from modular_gpt.training.trainer import Trainer

NOT_COMPARED = ("seed", "name", "runs", "logger")  # settings of a run on which its numbers do not depend
COPY = 1000  # difference of the seeds of two copies of a variant
DIGITS = 12  # hexadecimal digits of the keys of trials


@dataclass(frozen=True)
class Trial:
    """One training of a variant.

    config: a RunConfig as plain values, whose learning rate is replaced, and whose seed is added to that of ``pair``
    pair: the seed by which differences are paired; 0 tunes learning rates and does not count in the result
    copy: number of equal variants before this one, whose trials take other seeds
    save: the directory for a checkpoint of the trained model; empty: it is not saved
    """

    variant: str
    config: PlainDict
    learning_rate: float
    pair: int
    copy: int = 0
    save: str = ""

    @property
    def seed(self) -> int:
        """The seed of the training; copies take others, since the same seeds would give the same numbers."""
        return int(self.config["seed"]) + self.pair + COPY * self.copy

    @property
    def key(self) -> str:
        """A key of all settings on which the numbers of the training depend."""
        return digest([config_key(self.config), f"{self.learning_rate:.6g}", self.seed])

    def plain(self) -> PlainDict:
        """The trial as plain values, for another process."""
        return asdict(self)

    def identity(self) -> PlainDict:
        """The trial in a result, without its settings."""
        names = ("variant", "learning_rate", "seed", "pair")
        return {"key": self.key, "config": config_key(self.config), **{name: getattr(self, name) for name in names}}


def digest(value: object) -> str:
    """A key of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def config_key(config: PlainDict) -> str:
    """A key of a variant's settings, without its learning rate."""
    compared = {name: value for name, value in config.items() if name not in NOT_COMPARED}
    return digest({**compared, "optim": {**compared["optim"], "learning_rate": None}})


class Curve(NullRecorder):
    """Keeps the losses of a training instead of writing them."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[tuple[int, float]] = []
        self.validations: list[tuple[int, float]] = []
        self.speeds: list[float] = []

    def training(self, entry: Entry) -> None:
        """Keep the mean loss since the last entry."""
        if math.isfinite(entry.get("loss", math.nan)):
            self.losses.append((int(entry["step"]), round(entry["loss"], 4)))
        self.speeds.append(entry["tokens_per_second"])

    def evaluation(self, entry: Entry, text: str | None, best: bool) -> None:
        """Keep the validation loss."""
        self.validations.append((int(entry["step"]), entry["validation_loss"]))

    @property
    def last(self) -> float:
        """The last validation loss; NaN if there is none."""
        return self.validations[-1][1] if self.validations else math.nan

    def plain(self) -> PlainDict:
        """The curves as plain values, and the median speed."""
        return {
            "losses": self.losses,
            "validations": [(step, loss) for step, loss in self.validations if math.isfinite(loss)],
            "tokens_per_second": sorted(self.speeds)[len(self.speeds) // 2] if self.speeds else None,
        }


def run_trial(trial: PlainDict) -> PlainDict:
    """Train the trial that ``Trial.plain`` returned. A training that breaks down has no finite loss in its result.

    Raises:
        ConfigError, DataError, CheckpointError: the settings cannot be trained.
        KeyboardInterrupt, SystemExit: a signal ended the training.
    """
    described = Trial(**trial)
    config = RunConfig.from_dict({**described.config, "seed": described.seed})
    config.optim = replace(config.optim, learning_rate=described.learning_rate)
    curve, cpu, begun = Curve(), time.process_time(), time.perf_counter()
    with trainer_of(config) as trainer:
        diverged = fit(trainer, curve)
        conditions = conditions_of(trainer)
        if described.save and diverged is None and Path(described.save).parent.is_dir():
            with trainer.eval_weights():
                save_checkpoint(described.save, trainer.model, trainer.tokenizer)
    return {
        **described.identity(),
        **curve.plain(),
        "loss": curve.last if diverged is None else None,
        "diverged": diverged,
        "steps": trainer.progress.step,
        "tokens_per_step": config.trainer.batch_size * trainer.block,
        "training_seconds": trainer.progress.seconds,
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "conditions": conditions,
        "versions": versions(),
    }


def fit(trainer: Trainer, curve: Curve) -> str | None:
    """Train to the last step. Returns the reason if the training broke down, else None.

    Raises:
        KeyboardInterrupt, SystemExit: a signal ended it.
    """
    try:
        finished = trainer.fit(curve, lambda required: None)
    except (ConfigError, DataError, CheckpointError):
        raise
    except UserError as error:
        return first_line(error)
    if not finished:
        raise_for_signal(trainer.stop.signal or 0, None)
    return None if math.isfinite(curve.last) else f"the validation loss at the last step is {curve.last}"


def conditions_of(trainer: Trainer) -> PlainDict:
    """The conditions of a training that have to be equal in all trials."""
    return {
        "data": trainer.data.identity,
        "device": trainer.device.type,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "compiled": trainer.forward.compiled,
    }


@cache
def versions() -> PlainDict:
    """The versions that a trial's numbers may depend on."""
    now = environment()
    return {"modular_gpt": now["modular_gpt"], "git_commit": now["git_commit"], "torch": now["libraries"]["torch"]}


@contextmanager
def trainer_of(config: RunConfig) -> Iterator[Trainer]:
    """Context manager: the trainer of a run without a directory, under the conditions that the settings describe."""
    keep_memory()
    threads = torch.get_num_threads()
    data, tokenizer = text_of(config)
    device = choose_device(config.trainer.device)
    precision = str(config.trainer.precision)
    check_precision(precision, device)
    placement = Placement(device, precision, build_parallel("none", ProcessGroup()))
    prepare_device(config.trainer.threads)
    try:
        with float32_products(precision, device):
            trainer = build_trainer(config, data, tokenizer, placement, say=lambda text: None)
            trainer.stop.prints = False  # nothing is saved at the end of a trial, so there is nothing to announce
            with actionable_errors(config, trainer), ordered_sums(trainer.forward.compiled):
                yield trainer
    finally:
        torch.set_num_threads(threads)


def text_of(config: RunConfig) -> tuple[PreparedData, Tokenizer]:
    """The tokens of a run and its tokenizer, read once in a process."""
    plain = config.to_dict()
    return _text_of(json.dumps({name: plain[name] for name in ("data", "tokenizer", "init_from")}, sort_keys=True))


@cache
def _text_of(settings: str) -> tuple[PreparedData, Tokenizer]:
    config = RunConfig.from_dict(json.loads(settings))
    corpus: Corpus = build_corpus(config.data)
    source = None if config.init_from is None else open_source(config.init_from)
    tokenizer = tokenizer_of(config, corpus, source, None)
    return corpus.prepare(tokenizer), tokenizer
