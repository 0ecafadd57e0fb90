"""The four slots that components fill, and what passes between them. Read this file first.

Shape letters, the same everywhere:
    B batch, T new tokens, S all keys (cached + new), D d_model, H query heads, K key/value heads,
    N width of a head, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from torch import Tensor, nn

from modular_gpt.core.cache import CacheSpec, LayerCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.positions import Positions
from modular_gpt.core.registry import Component, ComponentConfig, described
from modular_gpt.core.weight_transfer import AttentionWeights, FeedForwardWeights, NormWeights, TransferReport

# How tensor parallelism treats a submodule or parameter (``shard``). COLUMNS: a process holds some outputs of a linear
# layer; ROWS: it holds some inputs, and outputs are summed over processes; SHARED: it holds the whole tensor and uses
# it for its own shard, so that gradients are summed over processes.
ParallelStyle = Literal["columns", "rows", "shared"]
COLUMNS: Final = "columns"
ROWS: Final = "rows"
SHARED: Final = "shared"


@dataclass(frozen=True)
class Dims:
    """The only facts about the whole model that reach a part."""

    d_model: int
    n_layers: int
    n_heads: int
    context_length: int
    vocab_size: int
    dropout: float
    bias: bool

    def head_dim(self, setting: str) -> int:
        """d_model / n_heads, the width of a head where none is given.

        setting: what gives it instead, for the message

        Raises:
            ConfigError: the heads do not divide the width.
        """
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"d_model={self.d_model} does not divide into n_heads={self.n_heads}; change one, or set {setting}"
            )
        return self.d_model // self.n_heads


class Norm(Component, nn.Module, ABC, slot="norm"):
    """Normalises the last dimension: (..., width) -> (..., width)."""

    def __init__(self, config: ComponentConfig, width: int, bias: bool) -> None:
        super().__init__()

    @classmethod
    def resolved(cls, config: Any, bias: bool) -> Any:
        """The same settings with every null that stands for something else replaced by it."""
        return config

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    def canonical_weights(self) -> NormWeights | None:
        """What another kind that takes this one's place can start from; None where there is nothing."""
        return None

    def init_from(self, source: NormWeights) -> TransferReport:
        """Start from what another kind offers; what is not in the answer stays new."""
        return {}

    def reset_parameters(self) -> None:
        """Set weights to what leaves the normalised input as it is."""


class Position(Component, nn.Module, ABC, slot="pos"):
    """How a model knows order. Three doors, each the identity by default; flags say which are used."""

    embeds: ClassVar[bool] = False
    rotates: ClassVar[bool] = False
    biases: ClassVar[bool] = False
    extrapolates: ClassVar[bool] = True  # False: positions end at context_length
    # Whether scores depend on distances alone, so that a text may go on past context_length with each token
    # seeing the last context_length ones, and no distance is new to the model.
    slides: bool = True

    def __init__(self, config: ComponentConfig, dims: Dims) -> None:
        super().__init__()
        self.described = described(config)

    @classmethod
    def check(cls, config: Any, dims: Dims, rotary_width: int) -> None:
        """Refuse, by a ConfigError, settings that cannot work; rotary_width is what attention offers to rotate."""

    @classmethod
    def resolved(cls, config: Any, dims: Dims, rotary_width: int) -> Any:
        """The same settings with every null that stands for something else replaced by it."""
        return config

    def embed(self, x: Tensor, pos: Positions) -> Tensor:
        """Add positions to token embeddings: (B, T, D) -> (B, T, D)."""
        return x

    def rotate(self, x: Tensor, pos: Positions) -> Tensor:
        """Rotate queries or keys before they meet: (B, heads, T, width) -> the same shape."""
        return x

    def bias(self, pos: Positions, key_columns: Tensor, n_heads: int) -> Tensor | None:
        """What is added to attention scores, (1, H, T, S), for keys at ``key_columns`` (S,); or None."""
        return None

    def reset_parameters(self) -> None:
        """Set whatever is no matrix; the initialisation pass sets matrices."""

    def extra_repr(self) -> str:
        return self.described


class Attention(Component, nn.Module, ABC, slot="attention"):
    """Mixes information between tokens: (B, T, D) -> (B, T, D), causally."""

    accepts_bias: ClassVar[bool] = True  # False: there is no score matrix that a position could add to
    position: Position

    def __init__(self, config: ComponentConfig, dims: Dims, position: Position) -> None:
        super().__init__()
        self.described = f"{described(config)}; pos {position.described}"
        self.__dict__["position"] = position  # no submodule: the model owns it, layers share it, it is saved once

    @classmethod
    def check(cls, config: Any, dims: Dims, position: type[Position]) -> None:
        """Refuse, by a ConfigError, settings that cannot work with these dimensions and this position."""
        if position.biases and not cls.accepts_bias:
            raise ConfigError(
                f"attention={config.name} has no score matrix to add the bias of this position kind to; "
                "use pos=rope, learned, sinusoidal or none"
            )

    @classmethod
    def resolved(cls, config: Any, dims: Dims, position: type[Position]) -> Any:
        """The same settings with every null that stands for something else replaced by it."""
        return config

    @classmethod
    @abstractmethod
    def rotary_width(cls, config: Any, dims: Dims, position: type[Position]) -> int:
        """Width of the vectors this attention offers to ``Position.rotate``; 0 for none."""

    @classmethod
    @abstractmethod
    def cache_spec(cls, config: Any, dims: Dims, position: type[Position]) -> CacheSpec:
        """What one layer keeps of the past; both the prediction and the allocation are made from it."""

    @classmethod
    def score_flops(cls, config: Any, dims: Dims, position: type[Position]) -> int:
        """Floating-point operations for one query to meet one key: its score, and its share of the weighted sum.

        0 where the cost of a token does not depend on how many tokens stand before it.
        """
        return 0

    @abstractmethod
    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with a cache, appends the new tokens to it."""

    def canonical_weights(self) -> AttentionWeights | None:
        """What another kind that takes this one's place can start from; None where there is nothing."""
        return None

    def init_from(self, source: AttentionWeights) -> TransferReport:
        """Start from what another kind offers; what is not in the answer stays new."""
        return {}

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        """Shard this module for tensor parallelism: compute only shard ``rank`` of ``world_size``.

        Returns the parallel style of each submodule or parameter by name; an empty dict: the module is replicated.

        Raises:
            ConfigError: a size does not divide by ``world_size``.
        """
        return {}

    def reset_parameters(self) -> None:
        """Set whatever is no matrix; the initialisation pass sets matrices."""

    def extra_repr(self) -> str:
        return self.described


class FeedForward(Component, nn.Module, ABC, slot="ffn"):
    """Transforms each token by itself: (B, T, D) -> (B, T, D)."""

    takes_mask: ClassVar[bool] = False  # True: ``forward`` takes the mask (B, T) of tokens that are no padding, or None

    def __init__(self, config: ComponentConfig, dims: Dims) -> None:
        super().__init__()

    @classmethod
    def check(cls, config: Any, dims: Dims) -> None:
        """Refuse, by a ConfigError, settings that cannot work."""

    @classmethod
    def resolved(cls, config: Any, dims: Dims) -> Any:
        """The same settings with every null that stands for something else replaced by it."""
        return config

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> (B, T, D) and auxiliary losses by name, already weighted; dense parts return {}."""

    def canonical_weights(self) -> FeedForwardWeights | None:
        """What another kind that takes this one's place can start from; None where there is nothing."""
        return None

    def init_from(self, source: FeedForwardWeights) -> TransferReport:
        """Start from what another kind offers; what is not in the answer stays new."""
        return {}

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        """Shard this module for tensor parallelism: compute only shard ``rank`` of ``world_size``.

        Returns the parallel style of each submodule or parameter by name; an empty dict: the module is replicated.

        Raises:
            ConfigError: a size does not divide by ``world_size``.
        """
        return {}

    def inactive_parameters(self) -> int:
        """How many parameters a token does not use (experts it is not routed to)."""
        return 0

    def after_optimizer_step(self) -> None:
        """Called by the training loop after each update, for state that gradients do not reach."""

    def after_skipped_step(self) -> None:
        """Called instead where an update is left out: what was counted for it is to be forgotten."""

    def reset_parameters(self) -> None:
        """Set whatever is no matrix; the initialisation pass sets matrices."""
