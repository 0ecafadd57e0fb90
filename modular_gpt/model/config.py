"""The config of a model: dimensions, one component per slot, settings per layer, and the head."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple, get_type_hints

import torch

import modular_gpt.nn  # noqa: F401  registers the components
from modular_gpt.core.aliases import MODEL_SETTINGS
from modular_gpt.core.cache import CacheSpec
from modular_gpt.core.contracts import Attention, AttentionConfig, Dims, FeedForward, Norm, Position
from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, encode, merge
from modular_gpt.core.validation import (
    at_most,
    checked,
    fraction,
    from_mapping,
    known_keywords,
    one_of,
    positive,
    shown,
)
from modular_gpt.model.topologies import TOPOLOGIES

CONFIG_FORMAT = 1  # of the dict that to_dict writes
SLOTS = ("attention", "ffn", "norm", "pos")
BASE = "base"  # the pattern's name for a layer without overrides
BLOCK = "block"  # key of a variant, beside the slots, that sets the fields of _Block
# Larger than any published model: a size above these comes from a typo or a damaged file.
LARGEST = {"vocab_size": 2**31, "d_model": 2**24, "n_heads": 2**20, "n_layers": 2**14, "context_length": 2**31}

Choice = str | PlainMapping | ComponentConfig


@known_keywords("LayersConfig")
@dataclass
class LayersConfig:
    """Settings that differ between layers.

    name: Name of the pattern, which is only shown.
    variants: Named sets of settings that differ from the model's own, as a mapping from name to slot to settings.
        Another component name starts from that component's defaults. Beside the slots, block sets the topology,
        the residual_multiplier and the residual_weights of the layer.
    prefix: Variants of the first layers, by name.
    cycle: Variants that are repeated over the layers between prefix and suffix; base is a layer without changes.
    suffix: Variants of the last layers, by name.
    """

    name: str = "uniform"
    variants: dict = field(default_factory=dict)
    prefix: list = field(default_factory=list)
    cycle: list = field(default_factory=list)
    suffix: list = field(default_factory=list)

    def __post_init__(self) -> None:
        for place in ("prefix", "cycle", "suffix"):
            names = getattr(self, place)
            if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"layers.{place} must be a list of names of variants, got {names!r}")

    def pattern(self, n_layers: int) -> list[str]:
        """The variant of each layer."""
        between = n_layers - len(self.prefix) - len(self.suffix)
        if between < 0:
            raise ConfigError(
                f"layers names {len(self.prefix) + len(self.suffix)} first and last layers, "
                f"but the model has n_layers={n_layers}"
            )
        cycle = self.cycle or [BASE]
        names = [*self.prefix, *(cycle[i % len(cycle)] for i in range(between)), *self.suffix]
        for name in names:
            if name != BASE and name not in self.variants:
                raise ConfigError(f"layers: {unknown('variant', str(name), [BASE, *self.variants])}")
        return names


class BlockConfig(NamedTuple):
    """One transformer block: its components, its topology, and the weights of its residual connections."""

    attention: ComponentConfig
    ffn: ComponentConfig
    norm: ComponentConfig
    pos: ComponentConfig
    topology: str
    residual_multiplier: float
    residual_weights: list[float] | None = None

    @property
    def position_class(self) -> type[Position]:
        return Position.of(self.pos)

    @property
    def attention_class(self) -> type[Attention]:
        return Attention.of(self.attention)

    @property
    def ffn_class(self) -> type[FeedForward]:
        return FeedForward.of(self.ffn)

    @property
    def norm_class(self) -> type[Norm]:
        return Norm.of(self.norm)

    def rotary_width(self, dims: Dims) -> int:
        """The width of the vectors that the attention passes to ``Position.rotate``; 0 if it rotates nothing."""
        return self.attention_class.rotary_width(self.attention, dims, self.position_class)

    def uses_positions(self, dims: Dims) -> bool:
        """Whether ``pos`` has an effect; a rotation has none in an attention without one, such as a recurrence."""
        return self.position_class.embeds or self.position_class.biases or self.rotary_width(dims) > 0

    def cache_spec(self, dims: Dims) -> CacheSpec:
        spec = self.attention_class.cache_spec(self.attention, dims, self.position_class)
        return self.attention.convolved(spec, dims) if isinstance(self.attention, AttentionConfig) else spec

    def score_flops(self, dims: Dims, context: int, causal: bool) -> float:
        """FLOPs of the scores and weighted sums of one query in a full context.

        causal: count the keys up to the query, on average over queries; otherwise all keys of the context or window
        """
        keys = self.attention_class.keys_seen(self.attention, dims, self.position_class, context)[causal]
        return keys * self.attention_class.score_flops(self.attention, dims, self.position_class)

    def resolved(self, dims: Dims) -> "BlockConfig":
        """The block with each null replaced by its default; called when the config is read.

        Raises:
            ConfigError: a default cannot be derived from these dimensions.
        """
        block = self._replace(
            attention=self.attention_class.resolved(self.attention, dims, self.position_class),
            ffn=self.ffn_class.resolved(self.ffn, dims),
            norm=self.norm_class.resolved(self.norm, dims.bias),
        )
        return block._replace(pos=self.position_class.resolved(self.pos, dims, block.rotary_width(dims)))

    def check(self, dims: Dims) -> None:
        """Raise a ConfigError for settings that a component does not support."""
        self.attention_class.check(self.attention, dims, self.position_class)
        self.position_class.check(self.pos, dims, self.rotary_width(dims))
        self.ffn_class.check(self.ffn, dims)


@dataclass
class _Block:
    topology: str
    residual_multiplier: float
    residual_weights: list | None

    def __post_init__(self) -> None:
        one_of(self.topology, tuple(TOPOLOGIES), "topology")
        weights = self.residual_weights
        if weights is None:
            return
        if len(weights) != 4 or not all(isinstance(checked(one, float, "residual_weights"), float) for one in weights):
            raise ConfigError(f"residual_weights must be four numbers, got {shown(weights)}")
        if not TOPOLOGIES[self.topology].weighted:
            raise ConfigError(
                f"residual_weights weighs two additions to the residual stream, but topology={self.topology} adds"
                " attention and ffn at once; use residual_multiplier"
            )
        self.residual_weights = [float(weight) for weight in weights] if any(one != 1 for one in weights) else None


LayerConfig = BlockConfig  # the former name


class _Layer(NamedTuple):
    """One layer as the settings give it, and with its nulls resolved."""

    given: BlockConfig
    resolved: BlockConfig


@known_keywords("GPTConfig", {name: " and ".join(alias.targets) for name, alias in MODEL_SETTINGS.items()})
@dataclass
class GPTConfig:
    """Configuration of a GPT.

    vocab_size: Number of token ids.
    d_model: Width of the residual stream.
    n_heads: Number of attention heads per layer.
    n_layers: Number of blocks.
    context_length: Number of tokens in a training window.
    dropout: Dropout probability after embeddings, attention and ffn, and of attention weights.
    bias: Use biases in linear layers and LayerNorm.
    attention, ffn, norm, pos: A registered name, a mapping with a name and settings, or a component's Config.
    layers: The settings that differ between layers, as a LayersConfig or a mapping.
    topology: Arrangement of the norms in a block: pre, post, sandwich, post_residual, norm_residual, parallel or
        parallel_two_norms.
    residual_multiplier: Multiply the outputs of attention and ffn by this factor before they are added to the residual
        stream.
    residual_weights: Weights of the two additions to the residual stream, as four numbers: of the stream and of
        attention's output, of the stream and of ffn's output. By default (null) all are 1.
    embed_scale: Multiply token embeddings by this factor.
    embed_width: Width of the embeddings and of the input of the head; two matrices lead to d_model and back. By default
        (null) d_model.
    embed_norm: Normalise the embeddings.
    final_norm: Normalise before the head. By default (null) all topologies but post do.
    tie_embeddings: Use the embedding matrix as the head.
    head_bias: Give the head a bias.
    logit_scale: Multiply the logits by this factor.
    logit_softcap: Limit the logits to (-c, c) by c tanh(logits / c), after logit_scale. By default (null) they are not
        limited.
    init: Distribution of initial weights: normal, fan_in, xavier or orthogonal.
    init_std: Standard deviation of init=normal.
    init_residual: Initialisation of the matrices that write into the residual stream: scaled multiplies them by
        1/sqrt(2 n_layers), plain leaves them as other matrices, zero starts at zero.
    init_head: Initialisation of an untied head: matrix treats it as any matrix, zero starts at zero.
    init_by_name: Draw each parameter from a separate generator, seeded by the run's seed and the parameter's name,
        so that models start with equal weights where they have the same parameters. Otherwise one sequence of random
        numbers goes through the whole model.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range, or settings contradict each other.
    """

    vocab_size: int = 256
    d_model: int = 128
    n_heads: int = 4
    n_layers: int = 4
    context_length: int = 256
    dropout: float = 0.0
    bias: bool = True
    attention: Any = "mha"
    ffn: Any = "mlp"
    norm: Any = "layernorm"
    pos: Any = "rope"
    layers: Any = field(default_factory=LayersConfig)
    topology: str = "pre"
    residual_multiplier: float = 1.0
    residual_weights: list | None = None
    embed_scale: float = 1.0
    embed_width: int | None = None
    embed_norm: bool = False
    final_norm: bool | None = None
    tie_embeddings: bool = True
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    init: str = "normal"
    init_std: float = 0.02
    init_residual: str = "scaled"
    init_head: str = "matrix"
    init_by_name: bool = False

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            setattr(self, name, checked(getattr(self, name), hint, f"model.{name}"))
        positive(
            "model", **{name: getattr(self, name) for name in (*LARGEST, "logit_softcap", "init_std", "embed_width")}
        )
        at_most("model", LARGEST, self)
        fraction("model", dropout=self.dropout)
        one_of(self.topology, tuple(TOPOLOGIES), "topology")
        one_of(self.init, ("normal", "fan_in", "xavier", "orthogonal"), "init")
        one_of(self.init_residual, ("scaled", "plain", "zero"), "init_residual")
        one_of(self.init_head, ("matrix", "zero"), "init_head")
        if self.init_head == "zero" and self.tie_embeddings:
            raise ConfigError("init_head=zero needs a head that is not the embedding matrix; set tie_embeddings=false")
        for slot in SLOTS:
            setattr(self, slot, decode(slot, getattr(self, slot)))
        if isinstance(self.layers, Mapping):
            self.layers = from_mapping(LayersConfig, self.layers, "layers")
        if not isinstance(self.layers, LayersConfig):
            raise ConfigError(
                f"layers must be a mapping with variants, prefix, cycle and suffix, got {shown(self.layers)}"
            )
        self._check_layers()

    @property
    def dims(self) -> Dims:
        return Dims(
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            dropout=self.dropout,
            bias=self.bias,
        )

    @property
    def has_final_norm(self) -> bool:
        """Whether there is a norm before the head; by default there is one unless the last block ends with a norm."""
        return self.layer_configs[-1].topology != "post" if self.final_norm is None else self.final_norm

    @property
    def layer_configs(self) -> list[BlockConfig]:
        """The components and the block of each layer, with the overrides of its variant and every null resolved."""
        return [layer.resolved for layer in self._layers]

    @property
    def given_layers(self) -> list[BlockConfig]:
        """The components and the block of each layer as the settings give them, nulls included."""
        return [layer.given for layer in self._layers]

    @cached_property
    def _layers(self) -> list[_Layer]:
        given = {BASE: self._variant({})}
        for name, overrides in self.layers.variants.items():
            if not isinstance(overrides, Mapping):
                raise ConfigError(f"layers.variants.{name} must be a mapping of slots to settings, got {overrides!r}")
            if name == BASE:
                raise ConfigError(f"layers.variants cannot name {BASE!r}, which stands for a layer without changes")
            for slot in overrides:
                if slot not in (*SLOTS, BLOCK):
                    raise ConfigError(f"layers.variants.{name}: {unknown('slot', str(slot), (*SLOTS, BLOCK))}")
            given[name] = self._variant(overrides)
        pattern = self.layers.pattern(self.n_layers)
        layers = {name: _Layer(given[name], given[name].resolved(self.dims)) for name in dict.fromkeys(pattern)}
        return [layers[name] for name in pattern]

    def _variant(self, overrides: PlainMapping) -> BlockConfig:
        attention, ffn, norm, pos = (
            merge(slot, getattr(self, slot), overrides[slot]) if slot in overrides else getattr(self, slot)
            for slot in SLOTS
        )
        block = overrides.get(BLOCK, {})
        block = {"topology": block} if isinstance(block, str) else block
        if not isinstance(block, Mapping):
            raise ConfigError(f"the block of a variant must be a topology or a mapping of settings, got {block!r}")
        model_block = {field.name: getattr(self, field.name) for field in fields(_Block)}
        settings = from_mapping(_Block, {**model_block, **block}, BLOCK)
        return BlockConfig(attention, ffn, norm, pos, **asdict(settings))

    @cached_property
    def resolved_norm(self) -> ComponentConfig:
        """The norm after the embeddings and before the head, with its nulls resolved."""
        resolved: ComponentConfig = Norm.of(self.norm).resolved(self.norm, self.bias)
        return resolved

    @cached_property
    def resolved_pos(self) -> ComponentConfig:
        """The position of the model itself, which may be added to the embeddings, with its nulls resolved."""
        used = [layer.resolved.pos for layer in self._layers if layer.given.pos == self.pos]
        return used[0] if used else Position.of(self.pos).resolved(self.pos, self.dims, 0)

    def _check_layers(self) -> None:
        """Raise a ConfigError for a setting of a layer that a component does not support."""
        for given, resolved in {id(layer): layer for layer in self._layers}.values():  # each variant once
            resolved.check(self.dims)
            if resolved.position_class.embeds and given.pos != self.pos:
                raise ConfigError(
                    f"pos={given.pos.name} is added once to the embeddings and cannot be set per layer; set it as pos"
                )
        embedded: type[Position] = Position.of(self.pos)
        if embedded.embeds:  # also where every layer has another position
            embedded.check(self.resolved_pos, self.dims, 0)

    def cache_bytes(self, batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the cache of ``batch`` rows of ``tokens`` tokens over all layers, equal to the allocated bytes."""
        return sum(layer.cache_spec(self.dims).nbytes(batch, tokens, dtype) for layer in self.layer_configs)

    def to_dict(self) -> PlainDict:
        """A plain dict with every default spelled out, so that a changed default never changes an old model."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        slots = {slot: encode(getattr(self, slot)) for slot in SLOTS}
        return {"format": CONFIG_FORMAT, **plain, **slots, "layers": asdict(self.layers)}

    @classmethod
    def from_dict(cls, values: PlainMapping) -> "GPTConfig":
        """Read the result of ``to_dict``, in which settings may be missing.

        Raises:
            ConfigError: a setting is unknown, of the wrong type, or cannot work with another.
        """
        values = dict(values)
        written = values.pop("format", CONFIG_FORMAT)
        if written != CONFIG_FORMAT:
            raise ConfigError(
                f"this config has format {written!r}, this version reads {CONFIG_FORMAT}; update modular_gpt"
            )
        return from_mapping(cls, values, "model")
