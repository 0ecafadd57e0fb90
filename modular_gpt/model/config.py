"""What a model is: dimensions, one component per slot, what differs per layer, and the head."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple, cast, get_type_hints

import torch

import modular_gpt.nn  # noqa: F401  registers the components
from modular_gpt.core.cache import CacheSpec
from modular_gpt.core.contracts import Attention, Dims, FeedForward, Norm, Position
from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.registry import ComponentConfig, decode, encode, merge
from modular_gpt.core.validation import checked, fraction, from_mapping, one_of, positive
from modular_gpt.model.topologies import TOPOLOGIES

FORMAT = 1  # of the dict that to_dict writes
SLOTS = ("attention", "ffn", "norm", "pos")
BASE = "base"  # the pattern's name for a layer without overrides

Choice = str | Mapping[str, Any] | ComponentConfig


@dataclass
class LayersConfig:
    """Settings that differ between layers.

    name: Name of the pattern, which is only shown.
    variants: Named sets of settings that differ from the model's own, as a mapping from name to slot to settings.
        Another component name starts from that component's defaults.
    prefix: Variants of the first layers, by name.
    cycle: Variants that are repeated over the layers between prefix and suffix; base is a layer without changes.
    suffix: Variants of the last layers, by name.
    """

    name: str = "uniform"
    variants: dict = field(default_factory=dict)
    prefix: list = field(default_factory=list)
    cycle: list = field(default_factory=list)
    suffix: list = field(default_factory=list)

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


class LayerConfig(NamedTuple):
    """The components of one layer."""

    attention: ComponentConfig
    ffn: ComponentConfig
    norm: ComponentConfig
    pos: ComponentConfig

    @property
    def position_class(self) -> type[Position]:
        return cast(type[Position], self.pos.component)

    @property
    def attention_class(self) -> type[Attention]:
        return cast(type[Attention], self.attention.component)

    def cache_spec(self, dims: Dims) -> CacheSpec:
        return self.attention_class.cache_spec(self.attention, dims, self.position_class)

    def score_flops(self, dims: Dims, context: int, causal: bool) -> float:
        """Operations in which one query of a full context meets its keys, on average where ``causal``."""
        window = min(self.cache_spec(dims).window or context, context)
        keys = window - window * (window - 1) / (2 * context) if causal else window
        return keys * self.attention_class.score_flops(self.attention, dims, self.position_class)

    def resolved(self, dims: Dims) -> "LayerConfig":
        """The same with every null that stands for something else replaced by it."""
        rotary_width = self.attention_class.rotary_width(self.attention, dims, self.position_class)
        return LayerConfig(
            self.attention_class.resolved(self.attention, dims, self.position_class),
            cast(type[FeedForward], self.ffn.component).resolved(self.ffn, dims),
            cast(type[Norm], self.norm.component).resolved(self.norm, dims.bias),
            self.position_class.resolved(self.pos, dims, rotary_width),
        )


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
    topology: Arrangement of the norms in a block: pre, post, sandwich, post_residual or parallel.
    residual_multiplier: Multiply the outputs of attention and ffn by this factor before they are added to the residual
        stream.
    embed_scale: Multiply token embeddings by this factor.
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

    Raises ConfigError, in one sentence, for what cannot work.
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
    embed_scale: float = 1.0
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

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            setattr(self, name, checked(getattr(self, name), hint, f"model.{name}"))
        positive(
            "model",
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            context_length=self.context_length,
            logit_softcap=self.logit_softcap,
            init_std=self.init_std,
        )
        fraction("model", dropout=self.dropout)
        one_of(self.topology, tuple(TOPOLOGIES), "topology")
        one_of(self.init, ("normal", "fan_in", "xavier", "orthogonal"), "init")
        one_of(self.init_residual, ("scaled", "plain", "zero"), "init_residual")
        one_of(self.init_head, ("matrix", "zero"), "init_head")
        if self.init_head == "zero" and self.tie_embeddings:
            raise ConfigError("init_head=zero is for a head of its own, not the embeddings; set tie_embeddings=false")
        for slot in SLOTS:
            setattr(self, slot, decode(slot, getattr(self, slot)))
        if isinstance(self.layers, Mapping):
            self.layers = from_mapping(LayersConfig, self.layers, "layers")
        if not isinstance(self.layers, LayersConfig):
            raise ConfigError(f"layers must be a mapping with variants, prefix, cycle and suffix, got {self.layers!r}")
        for layer in self.layer_configs:
            self._check(layer)

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
        """Whether a norm stands before the head: where null, unless a norm ends every block anyway."""
        return self.topology != "post" if self.final_norm is None else self.final_norm

    @cached_property
    def layer_configs(self) -> list[LayerConfig]:
        """The components of each layer, with the overrides of its variant."""
        made = {BASE: LayerConfig(self.attention, self.ffn, self.norm, self.pos)}
        for name, overrides in self.layers.variants.items():
            if not isinstance(overrides, Mapping):
                raise ConfigError(f"layers.variants.{name} must be a mapping of slots to settings, got {overrides!r}")
            if name == BASE:
                raise ConfigError(f"layers.variants cannot name {BASE!r}, which stands for a layer without changes")
            for slot in overrides:
                if slot not in SLOTS:
                    raise ConfigError(f"layers.variants.{name}: {unknown('slot', str(slot), SLOTS)}")
            made[name] = LayerConfig(
                *(merge(slot, getattr(self, slot), overrides[slot]) if slot in overrides else getattr(self, slot)
                  for slot in SLOTS)
            )  # fmt: skip
        return [made[name] for name in self.layers.pattern(self.n_layers)]

    def _check(self, layer: LayerConfig) -> None:
        """Let every part refuse what it cannot do, when the config is read."""
        dims, position = self.dims, layer.position_class
        attention = layer.attention_class
        attention.check(layer.attention, dims, position)
        position.check(layer.pos, dims, attention.rotary_width(layer.attention, dims, position))
        cast(type[FeedForward], layer.ffn.component).check(layer.ffn, dims)
        if position.embeds and layer.pos != self.pos:
            raise ConfigError(
                f"pos={layer.pos.name} is added once to the embeddings and cannot be set per layer; set it as pos"
            )

    def cache_bytes(self, batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the cache of ``batch`` texts of ``tokens`` tokens, all layers; exactly what is allocated."""
        return sum(layer.cache_spec(self.dims).nbytes(batch, tokens, dtype) for layer in self.layer_configs)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict with every default spelled out, so that a changed default never changes an old model."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {slot: encode(getattr(self, slot)) for slot in SLOTS}
        return {"format": FORMAT, **plain, **parts, "layers": asdict(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """Read what ``to_dict`` wrote, or the same with some settings left out.

        Raises:
            ConfigError: a setting is unknown, of the wrong type, or cannot work with another.
        """
        values = dict(values)
        written = values.pop("format", FORMAT)
        if written != FORMAT:
            raise ConfigError(f"this config has format {written!r}, this version reads {FORMAT}; update modular_gpt")
        return from_mapping(cls, values, "model")
