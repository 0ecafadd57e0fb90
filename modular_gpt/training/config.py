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
    """How long, in what portions and where a model is trained.

    max_steps: updates of the weights; batch_size: windows in one update, over all micro-batches and processes
    gradient_accumulation: micro-batches that an update is computed in; changes the memory needed, not the result
    activation_checkpointing: every so-many-th block keeps only its input and computes the rest again in the backward
        pass, which takes less memory and more time (1: every block; 0: none); the result is the same
    gradient_clip: longest norm of the gradient, which is scaled down to it; 0 leaves it alone
    label_smoothing: share of each target that is spread evenly over the vocabulary; z_loss: weight of the squared
        logarithm of the softmax's denominator, which keeps logits from drifting (1e-4 is usual)
    frozen: patterns of the names of parameters that stay as they are, such as [embedding*, blocks.0.*]
    ema_decay: how slowly an average of the weights follows them (0.999 is usual), which is then evaluated and saved as
        the model (null: none is kept)
    order: windows start anywhere (``random``), or lie side by side and each comes once an ``epoch``
    eval_interval: steps between evaluations; eval_batches: fixed batches in one, 0 for the whole validation text
    sample_tokens: tokens of text generated at each evaluation, 0 for none; sample_prompt: what they continue (null:
        the beginning of the validation text); sample_temperature: how freely they are drawn
    patience: evaluations without a better loss after which training ends early (null: it goes on to the last step)
    final_evaluation: at the end, measure the best weights on the whole validation text
    log_interval: steps between entries of metrics.jsonl
    save_interval: steps between checkpoints (null: at each evaluation); keep: how many stay besides the best one
    device: auto | cpu | cuda | cuda:1 | mps ...; precision: auto | float32 | bf16_products | bf16 | fp16, of the
        arithmetic (weights and optimizer stay float32; bf16_products: all is float32, but matrix products round their
        inputs to bf16, which is twice as fast on CPUs with bf16 units); compile: let torch.compile generate code for
        this machine (auto: where that saves a run more time than it takes)
    threads: of the CPU (null: one for each physical core this process may use, or OMP_NUM_THREADS)
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
    """Everything that decides what a run does; ``train(RunConfig(...))`` does it.

    model: settings of GPTConfig; the vocabulary's size comes from the tokenizer
    data, tokenizer, optim, schedule, parallel, logger: a registered name, a mapping with a name, or a Config of
        that slot
    seed: of the weights, the order of the data and dropout
    name: the last part of the run's directory, which is made in ``runs``
    resume: the directory of a run, or one of its checkpoints, to go on with in the same directory; the settings are
        those given here (``load_config`` reads the old ones)
    init_from: a run, a checkpoint, a folder in Hugging Face's format or a published name whose weights the model
        starts from; ``model`` says the parts that it shall have
    lora: adapters that are trained instead of the weights of ``init_from``
    dry_run: say what the training would need, and whether it fits, instead of doing it

    Raises:
        ConfigError: anything in it that cannot work.
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
