"""Interfaces of the four slots that components fill: norm, pos, attention, ffn. Read this file first.

Shape letters, the same everywhere:
    B batch, T new tokens, S all keys (cached + new), D d_model, H query heads, K key/value heads,
    N width of a head, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Generic, Literal, TypeVar

from torch import Tensor, nn

from modular_gpt.core.cache import CacheSpec, LayerCache
from modular_gpt.core.collectives import NOT_SHARDED, ShardGroup
from modular_gpt.core.convolution_cache import ConvolutionCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.positions import Positions
from modular_gpt.core.registry import C, Component, ComponentConfig, described
from modular_gpt.core.short_convolution import ShortConvolution
from modular_gpt.core.weight_transfer import AttentionWeights, FeedForwardWeights, NormWeights, TransferReport

# How tensor parallelism treats a submodule or parameter (``shard``). COLUMNS: a process holds some outputs of a linear
# layer; ROWS: it holds some inputs, and outputs are summed over processes; STACK: the first dimension of a parameter is
# divided, such as experts or rows of a table; SHARED: it holds the whole tensor and uses it for its own shard, so that
# gradients are summed over processes.
ParallelStyle = Literal["columns", "rows", "stack", "shared"]
COLUMNS: Final = "columns"
ROWS: Final = "rows"
STACK: Final = "stack"
SHARED: Final = "shared"

W = TypeVar("W")  # weights of a component in canonical form

MAX_CONV = 64  # tokens that a short convolution spans


@dataclass(frozen=True)
class Dims:
    """Dimensions and defaults of the model: with its Config, the settings that a component receives."""

    d_model: int
    n_layers: int
    n_heads: int
    context_length: int
    vocab_size: int
    dropout: float
    bias: bool

    def head_dim(self, setting: str) -> int:
        """d_model / n_heads, the default width of a head.

        setting: the setting that overrides it, for the error message

        Raises:
            ConfigError: n_heads does not divide d_model.
        """
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"d_model={self.d_model} does not divide into n_heads={self.n_heads}; change one, or set {setting}"
            )
        return self.d_model // self.n_heads


class ModelComponent(Component, nn.Module, ABC):
    """A component that is a module of the model."""

    def reset_parameters(self) -> None:
        """Initialise the parameters that are not matrices; the initialisation of the model sets matrices."""


class Transferable(Generic[W]):
    """A component whose weights have a canonical form ``W``, from which other implementations are initialised."""

    def canonical_weights(self) -> W | None:
        """The trained weights in canonical form, for ``init_from`` of another implementation; None: there are none."""
        return None

    def init_from(self, source: W) -> TransferReport:
        """Initialise from another implementation's weights.

        Returns how each parameter was derived, by name; parameters not listed keep their fresh initialisation.
        """
        return {}


class Shardable:
    """A component that tensor parallelism can shard.

    shards: the processes that hold its shards
    """

    shards: ShardGroup = NOT_SHARDED

    def join(self, shards: ShardGroup) -> dict[str, ParallelStyle]:
        """Shard this module among the processes of ``shards``; returns what ``shard`` returns."""
        self.shards = shards
        return self.shard(shards.rank, shards.size)

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        """Shard this module for tensor parallelism: compute only shard ``rank`` of ``world_size``.

        Returns the parallel style of each submodule or parameter by name; an empty dict: the module is replicated.

        Raises:
            ConfigError: a size does not divide by ``world_size``.
        """
        return {}


class Norm(ModelComponent, Transferable[NormWeights], Generic[C], slot="norm"):
    """Normalises the last dimension: (..., width) -> (..., width)."""

    def __init__(self, config: ComponentConfig, width: int, bias: bool) -> None:
        super().__init__()

    @classmethod
    def resolved(cls, config: C, bias: bool) -> C:
        """The same settings with each null that has a default replaced by it; ``bias`` is the model's setting."""
        return config

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""

    def reset_parameters(self) -> None:
        """Set the scale to 1 and the bias to 0: the output is the normalised input."""


class Position(ModelComponent, Generic[C], slot="pos"):
    """Positional encoding by ``embed``, ``rotate`` or ``bias``; each is the identity unless a subclass overrides it.

    embeds, rotates, biases: which of the three methods the subclass overrides
    extrapolates: False where positions end at context_length
    slides: scores depend on distances alone. Then a text can be longer than context_length: each token sees the last
        context_length tokens, and no distance is larger than in training.
    switch_length: number of tokens beyond which the keys of all tokens of a text change; None: they never do
    """

    embeds: ClassVar[bool] = False
    rotates: ClassVar[bool] = False
    biases: ClassVar[bool] = False
    extrapolates: ClassVar[bool] = True
    slides: bool = True
    switch_length: int | None = None

    def __init__(self, config: ComponentConfig, dims: Dims) -> None:
        super().__init__()
        self.described = described(config)

    @classmethod
    def check(cls, config: C, dims: Dims, rotary_width: int) -> None:
        """Raise a ConfigError for settings that cannot work; rotary_width: see ``Attention.rotary_width``."""

    @classmethod
    def resolved(cls, config: C, dims: Dims, rotary_width: int) -> C:
        """The same settings with each null that has a default replaced by it."""
        return config

    def embed(self, x: Tensor, pos: Positions) -> Tensor:
        """Add positions to token embeddings: (B, T, D) -> (B, T, D)."""
        return x

    def rotate(self, x: Tensor, pos: Positions) -> Tensor:
        """Rotate queries or keys before scores are computed: (B, heads, T, width) -> the same shape."""
        return x

    def bias(self, pos: Positions, key_columns: Tensor, n_heads: int) -> Tensor | None:
        """Term added to attention scores, (1 or B, H, T, S), for keys at ``key_columns`` (S,); None: nothing."""
        return None

    def extra_repr(self) -> str:
        return self.described


@dataclass
class AttentionConfig(ComponentConfig):
    """Settings that every attention has.

    conv: Number of tokens that a depthwise causal convolution of the attention's input spans, the current one
        included; 3 is usual. By default (null) there is none.
    """

    conv: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.conv is not None and not 2 <= self.conv <= MAX_CONV:
            raise ConfigError(
                f"attention.conv must be from 2 to {MAX_CONV} tokens, got {self.conv}; null is no convolution"
            )

    def convolved(self, spec: CacheSpec, dims: Dims) -> CacheSpec:
        """``spec`` with the inputs of earlier tokens that the convolution needs."""
        return spec if self.conv is None else replace(spec, history=(dims.d_model, self.conv - 1))


class Attention(ModelComponent, Transferable[AttentionWeights], Shardable, Generic[C], slot="attention"):
    """Mixes information between tokens: (B, T, D) -> (B, T, D), causally.

    accepts_bias: False where there is no softmax over scores to which ``Position.bias`` could be added; weights may
        then be negative and sum to any number
    sees_whole_window: a token sees all of the last ``window`` tokens of ``cache_spec``, or all earlier ones without a
        window
    separates_documents: ``forward`` lets no token see one before ``Positions.document_starts``
    only_speed: settings that change the speed, not the results
    reported: names after ``attention.`` of the tensors that ``forward`` reports to observers
    heads_are_channels: each channel is reported as a head of width 1; measures of heads leave them out
    input_conv: the convolution of the input, or None; the block applies it, by ``convolve``
    slides: as for ``Position``
    """

    accepts_bias: ClassVar[bool] = True
    sees_whole_window: ClassVar[bool] = True
    separates_documents: ClassVar[bool] = False
    only_speed: ClassVar[tuple[str, ...]] = ()
    reported: ClassVar[tuple[str, ...]] = ("query", "key", "value", "scores", "weights", "heads")
    heads_are_channels: ClassVar[bool] = False
    Config: ClassVar[type[ComponentConfig]] = AttentionConfig
    slides: bool = True
    position: Position

    def __init__(self, config: ComponentConfig, dims: Dims, position: Position) -> None:
        super().__init__()
        self.input_conv: ShortConvolution | None = None
        if isinstance(config, AttentionConfig) and config.conv is not None:
            self.input_conv = ShortConvolution(dims.d_model, config.conv)
        self.described = f"{described(config)}; pos {position.described}"
        self.__dict__["position"] = position  # not a submodule: it belongs to the model, and layers share it

    @classmethod
    def check(cls, config: C, dims: Dims, position: type[Position]) -> None:
        """Raise a ConfigError for settings that cannot work with these dimensions and this position."""
        if position.biases and not cls.accepts_bias:
            raise ConfigError(
                f"attention={config.name} has no score matrix to add the bias of this positional encoding to; "
                "use pos=rope, learned, sinusoidal or none"
            )

    @classmethod
    def resolved(cls, config: C, dims: Dims, position: type[Position]) -> C:
        """The same settings with each null that has a default replaced by it."""
        return config

    @classmethod
    @abstractmethod
    def rotary_width(cls, config: C, dims: Dims, position: type[Position]) -> int:
        """Width of the vectors that this attention passes to ``Position.rotate``; 0: it passes none."""

    @classmethod
    @abstractmethod
    def cache_spec(cls, config: C, dims: Dims, position: type[Position]) -> CacheSpec:
        """Shapes of the tensors that one layer caches; the predicted bytes and the allocation come from it."""

    @classmethod
    def score_flops(cls, config: C, dims: Dims, position: type[Position]) -> int:
        """Floating-point operations per query and key, in all heads: the score, and the term of the weighted sum.

        It is 0 if the cost of a token does not depend on the number of tokens before it.
        """
        return 0

    @classmethod
    def keys_seen(cls, config: C, dims: Dims, position: type[Position], context: int) -> tuple[float, float]:
        """The maximum and the mean, over the queries of ``context`` tokens, of the number of keys that a query sees."""
        window = min(cls.cache_spec(config, dims, position).window or context, context)
        return window, window - window * (window - 1) / (2 * context)

    def convolve(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> tuple[Tensor, LayerCache | None]:
        """Apply ``input_conv`` to the input of the block; returns the arguments ``x`` and ``cache`` of ``forward``."""
        if self.input_conv is None:
            return x, cache
        if cache is None:
            return self.input_conv(x, pos), None
        assert isinstance(cache, ConvolutionCache)
        return self.input_conv(x, pos, cache.history), cache.inner

    @abstractmethod
    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with a cache, appends the new tokens to it."""

    def extra_repr(self) -> str:
        return self.described


class FeedForward(ModelComponent, Transferable[FeedForwardWeights], Shardable, Generic[C], slot="ffn"):
    """Transforms each token independently of the others: (B, T, D) -> (B, T, D).

    takes_mask: ``forward`` takes a second argument, the mask (B, T), True where a token is not padding, or None
    """

    takes_mask: ClassVar[bool] = False

    def __init__(self, config: ComponentConfig, dims: Dims) -> None:
        super().__init__()

    @classmethod
    def check(cls, config: C, dims: Dims) -> None:
        """Raise a ConfigError for settings that cannot work."""

    @classmethod
    def resolved(cls, config: C, dims: Dims) -> C:
        """The same settings with each null that has a default replaced by it."""
        return config

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> (B, T, D) and auxiliary losses by name, already weighted; {} where there are none."""

    def inactive_parameters(self) -> int:
        """Number of parameters that one token does not use: those of the experts it is not routed to."""
        return 0

    def after_optimizer_step(self) -> None:
        """Update state that has no gradient; the training loop calls it after each optimizer step."""

    def after_skipped_step(self) -> None:
        """Discard statistics gathered for a step; called instead where the optimizer step is skipped."""
