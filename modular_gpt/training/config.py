"""The settings of a training run: one plain dataclass that a command line, a notebook or a file can fill.

``data``, ``tokenizer``, ``optim``, ``schedule``, ``parallel`` and ``logger`` are slots of the registry like the
components of a model, so ``entries("optim")`` lists the optimizers with their Config classes and one-line summaries.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from torch import nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import decode, encode
from modular_gpt.core.validation import (
    expand_home,
    fraction,
    from_mapping,
    not_negative,
    one_of,
    positive,
    seconds_of,
    validated,
)
from modular_gpt.data import Corpus, Tokenizer
from modular_gpt.model.aliases import read_config
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.loss import LossConfig
from modular_gpt.optim import build_schedule, peak_learning_rate
from modular_gpt.training.lora import LoraConfig

SLOTS = ("data", "tokenizer", "optim", "schedule", "parallel", "logger")
PRECISIONS = ("auto", "float32", "bf16_products", "bf16", "fp16")
PRECISION_NAMES = {  # in other programs
    **dict.fromkeys(("fp32", "32", "32-true"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16-mixed"), "bf16"),
    **dict.fromkeys(("float16", "16", "16-mixed"), "fp16"),
}
OBJECTIVES = ("cross_entropy", "dpo")
EVAL_WINDOWS = 8  # of the validation text, in one batch of an evaluation


@validated("trainer")
@dataclass
class TrainerConfig:
    """Settings of the training loop.

    max_steps: Number of optimizer steps.
    epochs: Number of passes over the training data, which may be a fraction, instead of max_steps. It becomes a number
        of steps when the run starts, which a resumed run keeps.
    max_tokens: Number of tokens to train on, padding included, instead of max_steps and in the same way.
    max_time: End training after this time, evaluation included, with an evaluation and a checkpoint: seconds, or a text
        such as 90m or 1h30m. All sessions of a run count together. The learning rate still follows the number of steps,
        so a run that ends by time may not reach its last rate.
    batch_size: Number of windows per optimizer step, over all micro-batches and processes.
    gradient_accumulation: Number of micro-batches per optimizer step. More need less memory; the result is the same.
    activation_checkpointing: Recompute every n-th block in the backward pass (1: all, 0: off), which takes less memory
        and more time. The result is the same.
    objective: Loss to minimise: cross_entropy (of the targets) or dpo (direct preference optimisation, for
        data=preferences). With dpo, a row is a pair of answers.
    beta: Strength with which objective=dpo keeps the model near the one that it starts from; 0.1 is usual.
    gradient_clip: Clip the global gradient norm to this value; 0 disables clipping.
    label_smoothing: Fraction of each target that is spread evenly over the vocabulary.
    z_loss: Weight of the squared log-partition function of the softmax, which keeps logits from drifting (1e-4 is
        usual).
    frozen: Patterns of names of parameters that are not trained, such as [embedding*, blocks.0.*].
    ema_decay: Decay rate of an exponential moving average of the weights (0.999 is usual), which is evaluated and saved
        as the model. By default (null) there is none.
    order: Order of training windows: random starts them anywhere; epoch takes adjacent windows, each once per epoch.
        Rows of records come once per epoch with either.
    eval_interval: Number of steps between evaluations.
    eval_batches: Size of an evaluation, as a number of batches of 8 fixed windows, which does not depend on batch_size;
        0 evaluates the whole validation text.
    patience: Stop after this many evaluations without a better loss. By default (null) training runs to the last step.
    sample_prompt: Prompt of the sample that is generated at each evaluation. By default (null) the beginning of the
        validation text.
    sample_tokens: Number of tokens in that sample; 0 generates none.
    sample_temperature: Temperature of that sample.
    eval_generate: Number of validation records of data=records that the model answers at each evaluation, greedily, for
        exact match and the metrics of the extra 'metrics'; 0 generates none.
    final_evaluation: Evaluate the best weights on the whole validation text at the end.
    log_interval: Number of steps between entries of metrics.jsonl.
    save_interval: Number of steps between checkpoints. By default (null) one is saved at each evaluation.
    keep: Number of checkpoints to keep besides the best one.
    keep_every: Save a checkpoint every n steps and keep it as a milestone. By default (null) there are none.
    async_save: Write checkpoints in the background, from a copy in the CPU's memory, while training continues. A save
        waits for the one before it, and the end of a training for the last one.
    device: The device to train on: auto, cpu, cuda, cuda:1, mps or another name that PyTorch knows.
    precision: Precision of the arithmetic: auto, float32, bf16_products, bf16 or fp16. Weights and optimizer state stay
        float32. With bf16_products, only matrix products round their inputs to bf16, which is twice as fast on CPUs
        with bf16 units.
    compile: Compile the model with torch.compile: true, false or auto, which compiles where that saves a run more time
        than it takes.
    threads: Number of CPU threads. By default (null) OMP_NUM_THREADS, or one per physical core that this process may
        use.
    """

    max_steps: int = 1600
    batch_size: int = 8
    gradient_accumulation: int = 1
    activation_checkpointing: int = 0
    objective: str = "cross_entropy"
    beta: float = 0.1
    gradient_clip: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    frozen: list[str] = field(default_factory=list)
    ema_decay: float | None = None
    order: str = "random"
    eval_interval: int = 200
    eval_batches: int = 32
    patience: int | None = None
    sample_prompt: str | None = None
    sample_tokens: int = 240
    sample_temperature: float = 0.8
    eval_generate: int = 0
    final_evaluation: bool = True
    log_interval: int = 10
    save_interval: int | None = None
    keep: int = 2
    keep_every: int | None = None
    async_save: bool = False
    device: str = "auto"
    precision: str | int = "auto"
    compile: bool | str = "auto"
    threads: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None
    max_time: float | str | None = None

    def __post_init__(self) -> None:
        self.precision = PRECISION_NAMES.get(str(self.precision).lower(), str(self.precision))
        at_least(1, "trainer", self, "max_steps", "batch_size", "gradient_accumulation", "eval_interval",
                 "patience", "log_interval", "save_interval", "keep", "keep_every", "threads")  # fmt: skip
        at_least(0, "trainer", self, "eval_batches", "eval_generate", "sample_tokens", "gradient_clip",
                 "activation_checkpointing")  # fmt: skip
        positive("trainer", sample_temperature=self.sample_temperature, epochs=self.epochs, max_tokens=self.max_tokens)
        self._check_length()
        fraction("trainer", label_smoothing=self.label_smoothing, ema_decay=self.ema_decay)
        not_negative("trainer", z_loss=self.z_loss)
        if not all(isinstance(pattern, str) for pattern in self.frozen):
            raise ConfigError(f"trainer.frozen must be a list of patterns of names, got {self.frozen!r}")
        one_of(self.order, ("random", "epoch"), "trainer.order")
        one_of(self.objective, OBJECTIVES, "trainer.objective")
        positive("trainer", beta=self.beta)
        one_of(str(self.precision), PRECISIONS, "trainer.precision")
        one_of(str(self.compile).lower(), ("auto", "true", "false"), "trainer.compile")
        self.compile = {"true": True, "false": False}.get(str(self.compile).lower(), "auto")
        if self.batch_size % self.gradient_accumulation:
            raise ConfigError(
                f"trainer.batch_size={self.batch_size} does not divide into"
                f" trainer.gradient_accumulation={self.gradient_accumulation} micro-batches; change one"
            )

    def _check_length(self) -> None:
        """Raise a ConfigError if several settings set the number of steps, or ``max_time`` is no time."""
        steps = None if self.max_steps == TrainerConfig.max_steps else self.max_steps
        lengths = {"max_steps": steps, "epochs": self.epochs, "max_tokens": self.max_tokens}
        given = [f"trainer.{name}={value}" for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} both set the length of the training: give one of them")
        if self.max_time is not None:
            seconds_of(self.max_time, "trainer.max_time")

    @property
    def knows_steps(self) -> bool:
        """Whether ``max_steps`` is the length of the training, and neither ``epochs`` nor ``max_tokens`` is."""
        return self.epochs is None and self.max_tokens is None

    @property
    def time_limit(self) -> float:
        """``max_time`` in seconds; infinite where there is none."""
        return math.inf if self.max_time is None else seconds_of(self.max_time, "trainer.max_time")

    @property
    def loss(self) -> LossConfig:
        """The terms that are added to the cross-entropy, as a LossConfig."""
        return LossConfig(self.label_smoothing, self.z_loss)


@validated("run")
@dataclass
class RunConfig:
    """All settings of a training run. ``train(RunConfig(...))`` trains it.

    model: A GPTConfig, or a mapping or a namespace with its settings, which may be foreign ones.
    data, tokenizer, optim, schedule, parallel, logger: A registered name, a mapping with a name, or a Config of that
        slot.
    trainer: Settings of the training loop, as a TrainerConfig or a mapping.
    seed: Seed of the initial weights, the order of the data and dropout.
    name: Name of the run, which is the last part of its directory's name in runs.
    runs: Directory that contains the directories of runs.
    resume: Resume this run, or one of its checkpoints, in the same directory. The settings are those given here;
        ``load_config`` reads the old ones.
    rewind: Resume from an older checkpoint of a run and delete its later ones.
    init_from: Start from the weights of this run, checkpoint, folder in Hugging Face's format or published name. The
        other settings of the model decide which components it has.
    lora: Train low-rank adapters instead of the weights of init_from.
    vocab_size: Number of token ids of the model. By default (null) the number that model gives; if it gives none, or is
        a GPTConfig with the default, as many as the tokenizer has.
    dry_run: Print the memory and time that the training would need, without training.

    Raises:
        ConfigError: a setting cannot work.
    """

    model: Any = field(default_factory=dict)
    data: Any = "python_stdlib"
    tokenizer: Any = "byte"
    optim: Any = "muon"
    schedule: Any = "wsd"
    parallel: Any = "auto"
    logger: Any = "none"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    name: str = "gpt"
    runs: str = "runs"
    resume: str | None = None
    rewind: bool = False
    init_from: str | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    vocab_size: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        for slot in SLOTS:
            setattr(self, slot, decode(slot, _without_paths(getattr(self, slot))))
        self.tokenizer = Corpus.of(self.data).tokenizer_config(self.data, self.tokenizer)
        self._read_model()
        expand_home(self, "runs", "resume", "init_from")
        if self.trainer.knows_steps:
            build_schedule(self.schedule, self.trainer.max_steps)
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} has more than 64 bits; take a smaller one")
        if not self.name or any(character in self.name for character in '/\\:*?"<>|\0'):
            raise ConfigError(f"name={self.name!r} must be usable as a part of a directory's name")

    def _read_model(self) -> None:
        """Convert ``model`` to a GPTConfig and set ``vocab_size`` to the number given, if any."""
        given: Any = vars(self.model) if isinstance(self.model, SimpleNamespace) else self.model
        if isinstance(given, nn.Module):
            raise ConfigError(f"model is a {type(given).__name__}: give its config, model=model.config")
        if isinstance(given, GPTConfig):
            size = None if given.vocab_size == GPTConfig.vocab_size else given.vocab_size
        else:
            size = given.get("vocab_size") if isinstance(given, Mapping) else None
        self.vocab_size = size if self.vocab_size is None else self.vocab_size
        self.model = read_config(self.model)
        if self.vocab_size is not None:
            self.model = replace(self.model, vocab_size=self.vocab_size)

    def model_config(self, tokenizer: Tokenizer) -> GPTConfig:
        """The model's config; it has as many ids as the tokenizer unless another number was given."""
        out: GPTConfig = (
            self.model if self.vocab_size is not None else replace(self.model, vocab_size=tokenizer.vocab_size)
        )
        return out

    def to_dict(self) -> PlainDict:
        """Plain values with every default spelled out, without ``resume``, ``rewind`` and ``dry_run``."""
        model = self.model.to_dict()
        if self.vocab_size is None:
            del model["vocab_size"]
        return {
            "model": model,
            **{slot: encode(getattr(self, slot)) for slot in SLOTS},
            "trainer": asdict(self.trainer),
            "seed": self.seed,
            "name": self.name,
            "runs": self.runs,
            "init_from": self.init_from,
            "lora": asdict(self.lora),
        }

    def record(self) -> PlainDict:
        """Return ``to_dict`` with a null learning rate replaced by this version's default, as a run records it."""
        values = self.to_dict()
        values["optim"]["learning_rate"] = peak_learning_rate(self.optim, self.model.d_model)
        return values

    @classmethod
    def from_dict(cls, values: PlainMapping) -> "RunConfig":
        """Read the result of ``to_dict``, in which settings may be missing.

        Raises:
            ConfigError: a setting is unknown, of the wrong type, or does not go with another one.
        """
        return from_mapping(cls, values, "run")


def _without_paths(value: Any) -> Any:
    """The same value with every Path in it as a str."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    return [_without_paths(inner) for inner in value] if isinstance(value, list | tuple) else value


def at_least(lowest: int, where: str, config: object, *names: str) -> None:
    """Raise a ConfigError for the first of the named settings that is given and below ``lowest``."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise ConfigError(f"{where}.{name} must be at least {lowest}, got {value}")
