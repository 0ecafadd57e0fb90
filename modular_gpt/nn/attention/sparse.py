"""Block-sparse attention: a query sees some of the earlier keys, chosen by a pattern.

BigBird https://arxiv.org/abs/2007.14062, Longformer https://arxiv.org/abs/2004.05150, strides of the Sparse Transformer
https://arxiv.org/abs/1904.10509, streaming with attention sinks https://arxiv.org/abs/2309.17453, and chunks (Llama 4).
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from modular_gpt.core.cache import CacheSpec, LayerCache, TokenCache
from modular_gpt.core.contracts import Dims, Position, Positions
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import filled, plain
from modular_gpt.core.validation import one_of, positive
from modular_gpt.nn.attention.mha import MultiHeadAttention
from modular_gpt.nn.block_sparse import BlockPlan, block_size
from modular_gpt.nn.sparse_patterns import PATTERNS, SparsePattern

_SEGMENT = 128  # smallest number of tokens that a segment of a later chunk has if the cache is a ring buffer
_LARGEST_SEED = 2**31


class SparseAttention(MultiHeadAttention, name="sparse"):
    """Block-sparse attention: time and memory grow with the number of keys that a pattern selects for each query."""

    sees_whole_window = False

    @dataclass
    class Config(MultiHeadAttention.Config):
        """Settings of block-sparse attention: those of multi-head attention, and those of the pattern.

        pattern: Keys that a query sees: bigbird (window, first tokens, random blocks), longformer (dilated window,
            first tokens), strided (window, every n-th block), streaming (window, first tokens as sinks) or chunked
            (the query's chunk).
        window: Number of nearest keys that a query sees, its own included. By default (null) 64; chunked has none.
        block: Tokens per block of queries and keys. In bigbird and strided it is the unit of random blocks and of
            the stride; elsewhere it changes speed, not results. By default (null) 32, or up to half the window.
        global_tokens: Number of first tokens of a text that all later tokens see. By default (null) 16, for streaming
            4; only for bigbird, longformer and streaming.
        random_blocks: Number of random blocks that a block of queries sees. By default (null) 2; only for bigbird.
        seed: Seed of the random blocks. By default (null) 0; only for bigbird.
        stride: Distance between the blocks that a query sees, in blocks. By default (null) 4; only for strided.
        dilation: Distance between neighbouring keys of the window. By default (null) 1; only for longformer.
        chunk: Number of tokens of a chunk. By default (null) 64; only for chunked.
        """

        pattern: str = "bigbird"
        block: int | None = None
        global_tokens: int | None = None
        random_blocks: int | None = None
        seed: int | None = None
        stride: int | None = None
        dilation: int | None = None
        chunk: int | None = None

    config: Config

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        self.scoring = replace(self.scoring, window=None, pattern=pattern_of(config))

    @classmethod
    def check(cls, config: MultiHeadAttention.Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        assert isinstance(config, cls.Config)
        used = {setting.name for setting in fields(PATTERNS[config.pattern])}
        for name in sorted(_pattern_settings()):
            value = getattr(config, name)
            if value is not None and name not in used:
                raise ConfigError(
                    f"attention.pattern={config.pattern} has no {name}, got {value}; leave it null or choose a pattern "
                    "that has one"
                )
            if value is not None and name not in ("seed", "global_tokens", "random_blocks"):
                positive("attention", **{name: value})
        for name in ("seed", "global_tokens", "random_blocks"):
            if not 0 <= (getattr(config, name) or 0) < _LARGEST_SEED:
                raise ConfigError(f"attention.{name} must be at least 0 and below 2**31, got {getattr(config, name)}")
        if config.backend == "flex":
            raise ConfigError("attention=sparse has no backend=flex; use auto, flash or math")

    @classmethod
    def resolved(cls, config: MultiHeadAttention.Config, dims: Dims, position: type[Position]) -> Config:
        config = super().resolved(config, dims, position)
        assert isinstance(config, cls.Config)
        one_of(config.pattern, tuple(PATTERNS), "attention.pattern")
        defaults = PATTERNS[config.pattern]()
        config = filled(config, **{name: getattr(defaults, name, None) for name in _pattern_settings() - {"block"}})
        free = config.pattern not in ("bigbird", "strided")
        return filled(config, block=block_size(config.window or config.chunk or 1) if free else defaults.block)

    @classmethod
    def cache_spec(cls, config: MultiHeadAttention.Config, dims: Dims, position: type[Position]) -> CacheSpec:
        assert isinstance(config, cls.Config)
        pattern = pattern_of(config)
        spec = super().cache_spec(config, dims, position)
        return replace(spec, window=pattern.reach, anchors=pattern.anchors)

    @classmethod
    def keys_seen(
        cls, config: MultiHeadAttention.Config, dims: Dims, position: type[Position], context: int
    ) -> tuple[float, float]:
        assert isinstance(config, cls.Config)
        plan = BlockPlan.of(pattern_of(config), context, context, torch.device("cpu"))
        counts = plan.seen.sum(-1).flatten()[:context]  # the last block is padded
        return float(counts.max()), float(counts.double().mean())

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, pos: Positions, cache: LayerCache | None) -> Tensor:
        """Attend as multi-head attention, in segments if the tokens come after cached ones.

        Memory then grows with the cache and a segment, not with the number of tokens.
        """
        count, at_once = pos.count, cache is None or pos.is_prefill or isinstance(pos.start, Tensor)
        if at_once or not isinstance(cache, TokenCache) or cache.window is None:
            return super()._mix(q, k, v, pos, cache)
        segment = max(cache.window, _SEGMENT)
        outs = []
        for first in range(0, count, segment):
            length = min(segment, count - first)
            new = [x[:, :, first : first + length] for x in (q, k, v)]
            outs.append(super()._mix(new[0], new[1], new[2], pos.narrow(first, length), cache))
        return torch.cat(outs, dim=2)


def pattern_of(config: SparseAttention.Config) -> SparsePattern:
    """The pattern of settings whose nulls are resolved."""
    chosen = PATTERNS[config.pattern]
    return chosen(**{setting.name: plain(getattr(config, setting.name)) for setting in fields(chosen)})


def _pattern_settings() -> set[str]:
    """The names of the settings of all patterns."""
    return {setting.name for pattern in PATTERNS.values() for setting in fields(pattern)}
