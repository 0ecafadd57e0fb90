"""What a training run is: one plain dataclass that a command line, a notebook or a file can fill.

``data``, ``tokenizer``, ``optim``, ``schedule``, ``parallel`` and ``logger`` are slots of the registry like the parts
of a model, so ``entries("optim")`` lists the optimizers with their Config classes and their one-line summaries.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import decode, encode
from modular_gpt.core.validation import fraction, from_mapping, not_negative, one_of, positive
from modular_gpt.model.aliases import read_config
from modular_gpt.model.loss import LossConfig
from modular_gpt.training.lora import LoraConfig

SLOTS = ("data", "tokenizer", "optim", "schedule", "parallel", "logger")
PRECISIONS = ("auto", "float32", "bf16_products", "bf16", "fp16")


@dataclass
class TrainerConfig:
    """Settings of the training loop.

    max_steps: Number of optimizer steps.
    batch_size: Number of windows per optimizer step, over all micro-batches and processes.
    gradient_accumulation: Number of micro-batches per optimizer step. More need less memory; the result is the same.
    activation_checkpointing: Recompute every n-th block in the backward pass (1: all, 0: off), which takes less memory
        and more time. The result is the same.
    gradient_clip: Clip the global gradient norm to this value; 0 disables clipping.
    label_smoothing: Fraction of each target that is spread evenly over the vocabulary.
    z_loss: Weight of the squared log-partition function of the softmax, which keeps logits from drifting (1e-4 is
        usual).
    frozen: Patterns of names of parameters that are not trained, such as [embedding*, blocks.0.*].
    ema_decay: Decay rate of an exponential moving average of the weights (0.999 is usual), which is evaluated and saved
        as the model. By default (null) there is none.
    order: Order of training windows: random starts them anywhere; epoch takes adjacent windows, each once per epoch.
    eval_interval: Number of steps between evaluations.
    eval_batches: Number of fixed batches per evaluation; 0 evaluates the whole validation text.
    patience: Stop after this many evaluations without a better loss. By default (null) training runs to the last step.
    sample_prompt: Prompt of the sample that is generated at each evaluation. By default (null) the beginning of the
        validation text.
    sample_tokens: Number of tokens in that sample; 0 generates none.
    sample_temperature: Temperature of that sample.
    final_evaluation: Evaluate the best weights on the whole validation text at the end.
    log_interval: Number of steps between entries of metrics.jsonl.
    save_interval: Number of steps between checkpoints. By default (null) one is saved at each evaluation.
    keep: Number of checkpoints to keep besides the best one.
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
    final_evaluation: bool = True
    log_interval: int = 10
    save_interval: int | None = None
    keep: int = 2
    device: str = "auto"
    precision: str = "auto"
    compile: bool | str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        at_least(1, "trainer", self, "max_steps", "batch_size", "gradient_accumulation", "eval_interval",
                 "patience", "log_interval", "save_interval", "keep", "threads")  # fmt: skip
        at_least(0, "trainer", self, "eval_batches", "sample_tokens", "gradient_clip", "activation_checkpointing")
        positive("trainer", sample_temperature=self.sample_temperature)
        fraction("trainer", label_smoothing=self.label_smoothing, ema_decay=self.ema_decay)
        not_negative("trainer", z_loss=self.z_loss)
        if not all(isinstance(pattern, str) for pattern in self.frozen):
            raise ConfigError(f"trainer.frozen must be a list of patterns of names, got {self.frozen!r}")
        one_of(self.order, ("random", "epoch"), "trainer.order")
        one_of(self.precision, PRECISIONS, "trainer.precision")
        one_of(str(self.compile).lower(), ("auto", "true", "false"), "trainer.compile")
        self.compile = {"true": True, "false": False}.get(str(self.compile).lower(), "auto")
        if self.batch_size % self.gradient_accumulation:
            raise ConfigError(
                f"trainer.batch_size={self.batch_size} does not divide into"
                f" trainer.gradient_accumulation={self.gradient_accumulation} micro-batches; change one"
            )

    @property
    def loss(self) -> LossConfig:
        """What is added to the cross-entropy."""
        return LossConfig(self.label_smoothing, self.z_loss)


@dataclass
class RunConfig:
    """All settings of a training run. ``train(RunConfig(...))`` trains it.

    model: Settings of GPTConfig; the vocabulary's size comes from the tokenizer.
    data, tokenizer, optim, schedule, parallel, logger: A registered name, a mapping with a name, or a Config of that
        slot.
    trainer: Settings of the training loop, as a TrainerConfig or a mapping.
    seed: Seed of the initial weights, the order of the data and dropout.
    name: Name of the run, which is the last part of its directory's name in runs.
    runs: Directory in which each run gets a directory of its own.
    resume: Resume this run, or one of its checkpoints, in the same directory. The settings are those given here;
        ``load_config`` reads the old ones.
    init_from: Start from the weights of this run, checkpoint, folder in Hugging Face's format or published name. The
        other settings of the model decide which components it has.
    lora: Train low-rank adapters instead of the weights of init_from.
    dry_run: Print the memory and time that the training would need, without training.

    Raises:
        ConfigError: a setting cannot work.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: Any = "python_stdlib"
    tokenizer: Any = "byte"
    optim: Any = "adamw"
    schedule: Any = "cosine"
    parallel: Any = "auto"
    logger: Any = "none"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    name: str = "gpt"
    runs: str = "runs"
    resume: str | None = None
    init_from: str | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    dry_run: bool = False

    def __post_init__(self) -> None:
        for slot in SLOTS:
            setattr(self, slot, decode(slot, getattr(self, slot)))
        if isinstance(self.trainer, Mapping):
            self.trainer = from_mapping(TrainerConfig, self.trainer, "trainer")
        if isinstance(self.lora, Mapping):
            self.lora = from_mapping(LoraConfig, self.lora, "lora")
        given = "vocab_size" in self.model
        self.model = read_config(self.model).to_dict()
        if not given:
            del self.model["vocab_size"]
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} has more than 64 bits; take a smaller one")
        if not self.name or any(character in self.name for character in '/\\:*?"<>|\0'):
            raise ConfigError(f"name={self.name!r} must be usable as a part of a directory's name")

    def to_dict(self) -> dict[str, Any]:
        """Plain values with every default spelled out, without ``resume`` and ``dry_run``."""
        return {
            "model": self.model,
            **{slot: encode(getattr(self, slot)) for slot in SLOTS},
            "trainer": asdict(self.trainer),
            "seed": self.seed,
            "name": self.name,
            "runs": self.runs,
            "init_from": self.init_from,
            "lora": asdict(self.lora),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Read what ``to_dict`` wrote, or the same with some settings left out.

        Raises:
            ConfigError: a setting is unknown, of the wrong type, or cannot work with another.
        """
        values = dict(values)
        for name, kind in (("trainer", TrainerConfig), ("lora", LoraConfig)):
            if isinstance(values.get(name), Mapping):
                values[name] = from_mapping(kind, values[name], name)
        return from_mapping(cls, values, "run")


def at_least(lowest: int, where: str, settings: object, *names: str) -> None:
    """Raise a ConfigError for the first of the named settings that is given and below ``lowest``."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < lowest:
            raise ConfigError(f"{where}.{name} must be at least {lowest}, got {value}")
