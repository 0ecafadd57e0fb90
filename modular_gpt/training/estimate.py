"""Estimates of the FLOPs and the memory of a training, computed on tensors without storage."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.memory import available_bytes
from modular_gpt.core.registry import ComponentLike
from modular_gpt.core.validation import size_errors
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import meta_model
from modular_gpt.optim import build_optimizer
from modular_gpt.training.config import TrainerConfig
from modular_gpt.training.lora import LoraConfig, select_trained

NO_ADAPTERS = LoraConfig()
MAX_LOGITS = 2**28  # of a micro-batch whose loss is estimated in the chunks that training uses
CHUNKS = 4  # in which the loss of more logits is estimated


@dataclass(frozen=True)
class Estimate:
    """FLOPs and memory of a training.

    flops_per_token: floating-point operations of the forward and backward pass of one token; each query attends to
        min(window, context) keys; recomputation by activation checkpointing is not counted
    causal_flops_per_token: the same without the keys after each query
    weights, gradients, optimizer: bytes in float32
    average: bytes of the moving average of the weights; 0 without one
    activations: bytes that one micro-batch keeps for its backward pass, with those of one recomputed block
    cache: bytes of the cache for one row of a full context
    """

    flops_per_token: float
    causal_flops_per_token: float
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    cache: int

    @property
    def training_bytes(self) -> int:
        """Peak of the bytes that training holds."""
        return sum(self.memory().values())

    def memory(self) -> dict[str, int]:
        """Bytes that training holds, by use."""
        names = ["weights", "gradients", "optimizer", *(["average"] if self.average else []), "activations"]
        return {name: getattr(self, name) for name in names}

    def sharded(self, processes: int) -> "Estimate":
        """The estimate for each of ``processes`` processes that shard everything but activations."""
        names = ("weights", "gradients", "optimizer", "average")
        return replace(self, **{name: getattr(self, name) // processes for name in names})

    def summary(self) -> str:
        """The memory in a phrase: the sum and its terms."""
        listed = ", ".join(f"{name} {format_bytes(count)}" for name, count in self.memory().items())
        return f"{format_bytes(self.training_bytes)} ({listed})"

    def table(self) -> str:
        """The estimate as a table of two columns."""
        rows = [
            (name, format_bytes(count)) for name, count in {**self.memory(), "together": self.training_bytes}.items()
        ]
        rows += [("cache, generating", format_bytes(self.cache)), ("FLOPs per token", f"{self.flops_per_token:,.0f}")]
        rows += [("causal FLOPs", f"{self.causal_flops_per_token:,.0f}")]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value:>12}" for name, value in rows)


def format_bytes(count: float) -> str:
    """Format a number of bytes with a binary unit, such as 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


size = format_bytes  # the former name


def estimate(
    config: GPTConfig, optim: ComponentLike, trainer: TrainerConfig, lora: LoraConfig = NO_ADAPTERS
) -> Estimate:
    """Estimate the FLOPs and the memory of a training, without computing or allocating any tensor.

    Raises:
        ConfigError: a format_bytes is larger than any tensor can have.
    """
    with size_errors("a training of these sizes"):
        with FakeTensorMode():
            model = fake_model(config, trainer, lora)
            optimizer = build_optimizer(optim, model).state_bytes()
        trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        flops, causal_flops = count_flops(config, trainer.frozen, lora)
        return Estimate(
            flops_per_token=flops,
            causal_flops_per_token=causal_flops,
            weights=sum(parameter.nbytes for parameter in model.parameters()),
            gradients=trained,
            optimizer=optimizer,
            average=0 if trainer.ema_decay is None else trained,
            activations=activation_bytes(config, trainer, lora),
            cache=config.cache_bytes(1, config.context_length),
        )


def fake_model(config: GPTConfig, trainer: TrainerConfig, lora: LoraConfig) -> GPTModel:
    """The model to train, with fake tensors on the CPU; to be called in a FakeTensorMode."""
    with torch.device("meta"):
        model = GPTModel(config)
        select_trained(model, lora, trainer.frozen)
    for module in model.modules():  # kernels of the CPU save other tensors for the backward pass than those of meta
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return model


def activation_bytes(config: GPTConfig, trainer: TrainerConfig, lora: LoraConfig = NO_ADAPTERS) -> int:
    """Bytes of activations that one micro-batch holds at its peak."""
    all_saved = saved_bytes(config, replace(trainer, activation_checkpointing=0), lora)
    interval = trainer.activation_checkpointing
    if not interval:
        return all_saved
    saved = saved_bytes(config, trainer, lora)
    recomputed_blocks = -(-config.n_layers // interval)  # of which one at a time holds its activations
    return saved + (all_saved - saved) // recomputed_blocks


def saved_bytes(config: GPTConfig, trainer: TrainerConfig, lora: LoraConfig) -> int:
    """Bytes that the forward pass of one micro-batch saves for the backward pass."""
    with FakeTensorMode():
        model = fake_model(config, trainer, lora)
        model.checkpoint_activations(trainer.activation_checkpointing)
        rows = trainer.batch_size // trainer.gradient_accumulation
        ids = torch.zeros(rows, config.context_length, dtype=torch.long)
        logits = ids.numel() * config.vocab_size
        # chunks are recomputed and save their inputs alone, so that a few large ones save as much as thousands
        loss = replace(trainer.loss, chunk=logits // CHUNKS) if logits > MAX_LOGITS else trainer.loss
        with saved_tensors() as saved:
            model(ids, ids, loss=loss)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(count for storage, count in storages.items() if storage not in weights)


def flops_per_token(config: GPTConfig, frozen: Sequence[str] = (), lora: LoraConfig = NO_ADAPTERS) -> float:
    """Floating-point operations of the forward and backward pass of one token in a full context.

    Each query attends to min(window, context) keys.

    frozen: patterns of the parameters that have no gradient; lora: the adapters
    """
    return count_flops(config, frozen, lora)[0]


def count_flops(config: GPTConfig, frozen: Sequence[str], lora: LoraConfig) -> tuple[float, float]:
    """``flops_per_token``, and the same without the keys after each query."""
    with torch.device("meta"):  # on this device attention is written out, so that the counter sees every product
        model = GPTModel(config)
        select_trained(model, lora, frozen)
        ids = torch.zeros(1, config.context_length, dtype=torch.long)
    context, layers = config.context_length, config.layer_configs
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, ids).loss
        forward = [_score_flops(counter, index) for index in range(len(layers))]
        loss.backward()

    def corrected(causal: bool) -> float:
        operations = float(counter.get_total_flops())
        for index, layer in enumerate(layers):
            exact = context * layer.score_flops(config.dims, context, causal)
            if forward[index] and exact:  # the counter sees full blocks of keys, masked ones included
                operations += _score_flops(counter, index) * (exact / forward[index] - 1)
        return operations / context

    return corrected(causal=False), corrected(causal=True)


def _score_flops(counter: FlopCounterMode, layer: int) -> int:
    """The products of queries, keys and values among those counted in one layer's attention."""
    counts = counter.get_flop_counts().get(f"GPTModel.blocks.{layer}.attention", {})
    return sum(count for operator, count in counts.items() if operator in (torch.ops.aten.bmm, torch.ops.aten.baddbmm))


@register_flop_formula(torch.ops.aten.linalg_solve_triangular)
def _triangular_flops(matrix: Sequence[int], sides: Sequence[int], *args: object, **kwargs: object) -> int:
    """Shapes (..., C, C) and (..., C, R) -> C C R for each system: a product and a sum for each element below."""
    return math.prod(sides) * matrix[-1]


@register_flop_formula([torch.ops.modular_gpt.grouped_matmul, torch.ops.modular_gpt.grouped_outer])
def _grouped_flops(x: Sequence[int], y: Sequence[int], *args: object, **kwargs: object) -> int:
    """Shapes of x (M, A) and of y, whose last dimension is C -> 2 M A C for any grouping of the rows."""
    return 2 * x[0] * x[1] * y[-1]


def suggest_smaller(
    config: GPTConfig,
    trainer: TrainerConfig,
    needs: Estimate | None = None,
    available: int = 0,
    lora: LoraConfig = NO_ADAPTERS,
) -> str:
    """Settings that need less memory, as on a command line.

    needs, available: an estimate and the available bytes, into which the settings fit; None: any smaller settings
    """
    count = trainer.gradient_accumulation
    rows = trainer.batch_size // count
    for divisor in (d for d in range(2, rows + 1) if rows % d == 0):
        if needs is None or needs.training_bytes - needs.activations * (1 - 1 / divisor) <= available:
            return f"trainer.gradient_accumulation={count * divisor}"
    others = 0 if needs is None else needs.training_bytes - needs.activations
    smallest = replace(trainer, gradient_accumulation=trainer.batch_size, activation_checkpointing=1)
    if trainer.activation_checkpointing != 1 and (
        needs is None or others + activation_bytes(config, smallest, lora) <= available
    ):
        split = f"trainer.gradient_accumulation={trainer.batch_size} " if rows > 1 else ""
        return f"{split}trainer.activation_checkpointing=1"
    if config.context_length > 128 and others <= available:
        return f"model_size.context_length={config.context_length // 2}"
    return "model_size=nano"


def check_memory(
    needs: Estimate, config: GPTConfig, trainer: TrainerConfig, device: torch.device, lora: LoraConfig = NO_ADAPTERS
) -> None:
    """Raise a ConfigError with a remedy for a training that needs more memory than is available."""
    available = available_bytes(device)
    if available is not None and needs.training_bytes > available:
        change = suggest_smaller(config, trainer, needs, available, lora)
        raise ConfigError(f"this needs {needs.summary()}, and {format_bytes(available)} are available: try {change}")


def check_weights(config: GPTConfig, shards: int = 1) -> None:
    """Raise a ConfigError for a model whose weights alone need more memory than is available.

    shards: the number of processes that hold shards of them
    """
    weights = sum(parameter.nbytes for parameter in meta_model(config).parameters()) // shards
    available = available_bytes(torch.device("cpu"))
    if available is not None and weights > available:
        raise ConfigError(
            f"the weights alone take {format_bytes(weights)}, and {format_bytes(available)} are available: take a"
            " smaller model_size; dry_run=true prints the memory that a training needs"
        )


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """Context manager: collects every tensor that autograd saves for the backward pass."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
