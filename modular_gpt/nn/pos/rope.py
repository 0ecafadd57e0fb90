"""Rotary position embedding: https://arxiv.org/abs/2104.09864

Scalings to longer contexts: linear https://arxiv.org/abs/2306.15595, dynamic (NTK scaling by the current length)
https://arxiv.org/abs/2309.00071 appendix, yarn https://arxiv.org/abs/2309.00071, llama3
https://arxiv.org/abs/2407.21783, longrope https://arxiv.org/abs/2402.13753.

No table is stored: angles are computed in float32 from the positions of each forward pass, once for all layers.
"""

import math
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from modular_gpt.core.contracts import Dims, Position, Positions
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig, filled, plain
from modular_gpt.core.validation import from_mapping, one_of, positive


@dataclass
class Scaling:
    """Settings that scale rotary frequencies to extend the context.

    kind: The method: linear, dynamic, llama3, yarn or longrope.
    factor: Ratio of the extended context to the original one.
    original_context_length: Context length of the original training. By default (null) the model's context_length.
    low_frequency_factor, high_frequency_factor: With llama3, keep wavelengths shorter than original/high, divide the
        frequencies of those longer than original/low by factor, and interpolate between them.
    beta_fast, beta_slow: With yarn, keep dimensions that turn more than beta_fast times over the original context,
        divide the frequencies of those that turn less than beta_slow times, and interpolate between them.
    truncate: With yarn, round the borders between these ranges to whole dimensions.
    attention_factor: Multiply queries and keys by this factor. By default (null) 0.1 ln(factor) + 1 with yarn, and
        sqrt(1 + ln(factor) / ln(original_context_length)) with longrope.
    short_factors, long_factors: With longrope, divide the frequency of each pair of dimensions by its entry of
        short_factors in texts up to original_context_length, and by that of long_factors in longer texts.
    """

    kind: str = "linear"
    factor: float = 1.0
    original_context_length: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    short_factors: list = field(default_factory=list)
    long_factors: list = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of(self.kind, ("linear", "dynamic", "llama3", "yarn", "longrope"), "pos.scaling.kind")
        positive("pos.scaling", factor=self.factor, original_context_length=self.original_context_length)
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise ConfigError(
                f"pos.scaling.low_frequency_factor={self.low_frequency_factor} must be below "
                f"high_frequency_factor={self.high_frequency_factor}"
            )


class RoPE(Position["RoPE.Config"], name="rope"):
    """Rotate queries and keys by angles that grow with position; scores depend on distance (Llama)."""

    rotates = True

    @dataclass
    class Config(ComponentConfig):
        """Settings of rotary positions.

        theta: Base of the wavelengths.
        rotary_dim: Number of dimensions of a head that are rotated. By default (null) all.
        layout: Pairing of dimensions: half rotates dimension i with i + half, interleaved with its neighbour.
        scaling: Settings that scale the frequencies for a longer context: kind, factor and others; empty for none.
        """

        theta: float = 10000.0
        rotary_dim: int | None = None
        layout: str = "half"
        scaling: dict = field(default_factory=dict)

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.config = config
        self.scaling = from_mapping(Scaling, config.scaling, "pos.scaling") if config.scaling else None
        self.original_length = 0 if self.scaling is None else plain(self.scaling.original_context_length)
        if self.scaling is not None and self.scaling.kind in ("dynamic", "longrope"):
            self.slides = False  # angles depend on the length of the text, not on distances alone
        if self.scaling is not None and self.scaling.kind == "longrope":
            self.switch_length = self.original_length
        self.settings = repr(config)  # memo key; computed here because torch.compile cannot trace a dataclass's repr

    @classmethod
    def check(cls, config: Config, dims: Dims, rotary_width: int) -> None:
        one_of(config.layout, ("half", "interleaved"), "pos.layout")
        dim = plain(config.rotary_dim)
        positive("pos", theta=config.theta, rotary_dim=dim if dim or rotary_width else None)
        scaling = from_mapping(Scaling, config.scaling, "pos.scaling") if config.scaling else None
        if dim and not rotary_width:
            raise ConfigError(f"pos.rotary_dim={dim}: this attention rotates nothing; leave it out, or take pos=none")
        if dim > rotary_width:
            raise ConfigError(f"pos.rotary_dim={dim} is wider than the {rotary_width} dimensions of a head")
        if dim % 2:
            raise ConfigError(f"pos=rope rotates pairs of dimensions: {dim} is odd; set an even pos.rotary_dim")
        if scaling is not None and scaling.kind == "yarn" and config.theta <= 1:
            raise ConfigError(f"pos.scaling.kind=yarn needs pos.theta above 1, got {config.theta:g}")
        if scaling is not None and scaling.kind == "longrope":
            _check_longrope(scaling, dim)
        if scaling is not None and scaling.kind == "dynamic" and dim == 2:
            raise ConfigError("pos.scaling.kind=dynamic needs more than one pair of rotated dimensions; use linear")

    @classmethod
    def resolved(cls, config: Config, dims: Dims, rotary_width: int) -> Config:
        scaling = {}
        if config.scaling:
            given = from_mapping(Scaling, config.scaling, "pos.scaling")
            length = given.original_context_length or dims.context_length
            scaling = asdict(replace(given, original_context_length=length))
        return replace(filled(config, rotary_dim=rotary_width), scaling=scaling)

    def rotate(self, x: Tensor, pos: Positions) -> Tensor:
        """(B, heads, T, width) -> the same shape; only the first ``rotary_dim`` dimensions are rotated."""
        dim = plain(self.config.rotary_dim)
        key = ("rope", self.settings, self.original_length, dim, x.dtype)
        cos, sin = pos.memo(key, lambda: self._angles(pos, dim, x.dtype))
        rotary, unrotated = x[..., :dim], x[..., dim:]
        if self.config.layout == "half":
            rotated = rotary * cos + torch.cat([-rotary[..., dim // 2 :], rotary[..., : dim // 2]], dim=-1) * sin
        else:
            even, odd = rotary[..., ::2], rotary[..., 1::2]
            cos, sin = cos[..., : dim // 2], sin[..., : dim // 2]
            rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
        return torch.cat([rotated, unrotated], dim=-1) if unrotated.shape[-1] else rotated

    def _angles(self, pos: Positions, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of position times frequency, each (B or 1, 1, T, dim)."""
        frequencies, magnitude = self._frequencies(pos, dim)
        angle = (pos.index[..., None].float() * frequencies)[:, None]
        angle = torch.cat([angle, angle], dim=-1)
        return (angle.cos() * magnitude).to(dtype), (angle.sin() * magnitude).to(dtype)

    def _frequencies(self, pos: Positions, dim: int) -> tuple[Tensor, float]:
        """Angles per position, (dim / 2,) or (B or 1, 1 or T, dim / 2), and the factor on queries and keys."""
        exponent = torch.arange(0, dim, 2, device=pos.index.device, dtype=torch.float32) / dim
        scaling = self.scaling
        if scaling is None:
            return 1.0 / self.config.theta**exponent, 1.0
        if scaling.kind == "dynamic":
            return self._dynamic(scaling, pos, exponent, dim), 1.0
        unscaled = 1.0 / self.config.theta**exponent
        if scaling.kind == "linear":
            return unscaled / scaling.factor, 1.0
        if scaling.kind == "llama3":
            return self._llama3(scaling, unscaled), 1.0
        if scaling.kind == "longrope":
            return self._longrope(scaling, pos, unscaled)
        magnitude = scaling.attention_factor
        if magnitude is None:
            magnitude = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
        return self._yarn(scaling, unscaled, dim), magnitude

    def _dynamic(self, scaling: Scaling, pos: Positions, exponent: Tensor, dim: int) -> Tensor:
        """(B or 1, 1 or T, dim / 2): the base grows with the current length of each text.

        Cached keys keep the angles of the length at which they were computed.
        """
        length = pos.text_lengths().clamp(min=self.original_length)[..., None]
        growth = scaling.factor * length / self.original_length - (scaling.factor - 1)
        return 1.0 / (self.config.theta * growth ** (dim / (dim - 2))) ** exponent

    def _longrope(self, scaling: Scaling, pos: Positions, unscaled: Tensor) -> tuple[Tensor, float]:
        """(B or 1, 1 or T, dim / 2): the current length of each text selects the short or the long factors.

        Cached keys keep the angles of the length at which they were computed; generation reads a text again when it
        grows beyond ``switch_length``.
        """
        length = pos.text_lengths()[..., None]
        short, long = (unscaled.new_tensor(factors) for factors in (scaling.short_factors, scaling.long_factors))
        magnitude = scaling.attention_factor
        if magnitude is None:
            growth = math.log(scaling.factor) / math.log(self.original_length)
            magnitude = math.sqrt(1 + growth) if scaling.factor > 1 else 1.0
        return unscaled / torch.where(length > self.original_length, long, short), magnitude

    def _llama3(self, scaling: Scaling, unscaled: Tensor) -> Tensor:
        turns = self.original_length * unscaled / (2 * math.pi)  # full turns over the original length
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return keep * unscaled + (1 - keep) * unscaled / scaling.factor

    def _yarn(self, scaling: Scaling, unscaled: Tensor, dim: int) -> Tensor:
        def border(turns: float) -> float:
            """Index of the dimension pair that makes this number of turns over the original length."""
            return dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.config.theta))

        low, high = border(scaling.beta_fast), border(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        pair = torch.arange(dim // 2, device=unscaled.device, dtype=torch.float32)
        stretch = ((pair - low) / max(high - low, 1e-3)).clamp(0, 1)
        return stretch * unscaled / scaling.factor + (1 - stretch) * unscaled


def _check_longrope(scaling: Scaling, dim: int) -> None:
    """Raise a ConfigError unless both lists of longrope have a positive number for each pair of dimensions."""
    for name in ("short_factors", "long_factors"):
        factors = getattr(scaling, name)
        if len(factors) != dim // 2 or not all(isinstance(f, (int, float)) and f > 0 for f in factors):
            raise ConfigError(f"pos.scaling.{name} needs a positive number for each of the {dim // 2} rotated pairs")
    if plain(scaling.original_context_length) < 2:
        raise ConfigError("pos.scaling.kind=longrope needs an original_context_length above 1")
