"""Line plots as inline SVG: axes with round ticks, lines, bands, dots and labels; colours are classes of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccaa33", "#33bbdd", "#aa3377", "#ee8844", "#44bb99", "#8866cc", "#999999")
WIDTH, HEIGHT = 480, 300
TOP, RIGHT, BOTTOM = 30, 14, 42  # margins in pixels
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range of values and its label; names: of rows at 0, 1, ..., instead of numbers."""

    low: float
    high: float
    label: str = ""
    log: bool = False
    names: tuple[str, ...] = ()

    def fraction(self, value: float) -> float:
        """The place of a value between both ends, 0 to 1, clipped a little beyond them."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return min(1.02, max(-0.02, (value - low) / ((high - low) or 1)))

    def ticks(self) -> list[tuple[float, str]]:
        """Round values within the range, with their text."""
        if self.names:
            return [(float(place), name) for place, name in enumerate(self.names)]
        values = log_ticks(self.low, self.high) if self.log else []
        return [(value, short(value)) for value in (values if len(values) > 1 else linear_ticks(self.low, self.high))]


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round values."""
    rough = (high - low or 1) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them if they are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = math.log10(high / low)
    factors = (1, 2, 5) if wide < 2.5 else (1,)
    stride = max(1, math.ceil(wide / 6))
    values = [factor * 10.0**decade for decade in decades if decade % stride == 0 for factor in factors]
    return [value for value in values if low <= value <= high]


def short(value: float) -> str:
    """A number in few characters: 200k, 0.05, 3e-05."""
    if value and abs(value) >= 1000:
        for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.3g}{suffix}"
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}"


class Plot:
    """A plot that shapes are added to; ``svg()`` returns it."""

    def __init__(self, title: str, x: Axis, y: Axis, left: int = 58, height: int = HEIGHT) -> None:
        """left: width of the margin with the labels of the rows"""
        self.x, self.y = x, y
        self.left, self.top, self.right, self.bottom = left, TOP, WIDTH - RIGHT, height - BOTTOM
        self.shapes = [
            f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f'<text x="{left}" y="18" class="title">{escape(title)}</text>',
        ]
        for value, text in x.ticks():
            at = self.across(value)
            self.shapes.append(f'<path class="grid" d="M{at:.1f} {self.top}V{self.bottom}"/>')
            self.shapes.append(f'<text x="{at:.1f}" y="{self.bottom + 15}" text-anchor="middle">{escape(text)}</text>')
        for value, text in y.ticks():
            at = self.up(value)
            self.shapes.append(f'<path class="grid" d="M{left} {at:.1f}H{self.right}"/>')
            cut = text if len(text) * 6.4 < left - 8 else text[: int((left - 14) / 6.4)] + "…"
            self.shapes.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(cut)}</text>')
        middle = (left + self.right) / 2
        self.shapes.append(
            f'<text x="{middle}" y="{height - 8}" text-anchor="middle" class="axis">{escape(x.label)}</text>'
        )
        if y.label:
            at = (self.top + self.bottom) / 2
            turned = f'transform="translate(13 {at}) rotate(-90)" text-anchor="middle" class="axis"'
            self.shapes.append(f"<text {turned}>{escape(y.label)}</text>")

    def across(self, value: float) -> float:
        """The x coordinate of a value."""
        return self.left + self.x.fraction(value) * (self.right - self.left)

    def up(self, value: float) -> float:
        """The y coordinate of a value."""
        return self.bottom - self.y.fraction(value) * (self.bottom - self.top)

    def _path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{self.across(x):.1f} {self.up(y):.1f}" for x, y in points)

    def line(self, points: Sequence[Point], style: str, tip: str = "") -> None:
        """A line through points; style: classes of the page."""
        if points:
            self.shapes.append(f'<path class="line {style}" d="{self._path(points)}">{tip_of(tip)}</path>')

    def band(self, low: Sequence[Point], high: Sequence[Point], style: str) -> None:
        """The area between two lines."""
        if low:
            self.shapes.append(f'<path class="band {style}" d="{self._path([*low, *reversed(high)])}Z"/>')

    def dot(self, x: float, y: float, style: str, tip: str = "", radius: float = 4) -> None:
        """A dot with a text that appears when it is pointed at."""
        at = f'cx="{self.across(x):.1f}" cy="{self.up(y):.1f}"'
        self.shapes.append(f'<circle class="dot {style}" {at} r="{radius:g}">{tip_of(tip)}</circle>')

    def text(self, x: float, y: float, text: str) -> None:
        """A label beside a point, on the side with room."""
        at = self.across(x)
        beside = at + 8 + 6.4 * len(text) < self.right
        anchor, shift = ("start", 8) if beside else ("end", -8)
        self.shapes.append(
            f'<text x="{at + shift:.1f}" y="{self.up(y) + 4:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def zone(self, low: float, high: float, tip: str) -> None:
        """A shaded range of x."""
        left, right = self.across(low), self.across(high)
        size = f'width="{right - left:.1f}" height="{self.bottom - self.top}"'
        self.shapes.append(f'<rect class="zone" x="{left:.1f}" y="{self.top}" {size}>{tip_of(tip)}</rect>')

    def svg(self) -> str:
        """The plot as an element of a page."""
        return "".join([*self.shapes, "</svg>"])


def tip_of(text: str) -> str:
    """The element whose text appears when its parent is pointed at; nothing for no text."""
    return f"<title>{escape(text)}</title>" if text else ""
