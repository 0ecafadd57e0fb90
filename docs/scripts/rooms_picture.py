"""An SVG of the rooms of the package by floor, from the FLOORS that tests/architecture/test_imports.py enforces.

tables.py writes it to docs/images/rooms.svg. A room's caption is the first line of its docstring.
"""

import textwrap
from html import escape

from imports_table import about

from tests.architecture.source import modules
from tests.architecture.test_imports import FLOORS, room

WIDTH, MARGIN, GUTTER, GAP = 1000, 16, 44, 10  # pixels; the gutter on the left holds the floor numbers
NAME_LINE, CAPTION_LINE, PADDING = 22, 16, 10
CAPTION_CHARACTER = 6.7  # a generous average width of a character of a caption
FONT, MONOSPACE = "Helvetica, Arial, sans-serif", "Menlo, Consolas, monospace"
INK, QUIET, PAPER, BOX, EDGE = "#1c2733", "#5b6b7b", "#ffffff", "#eef3f8", "#b8c7d6"


def floors() -> list[tuple[int, list[str]]]:
    """Return (floor number, its rooms) from the top down; modules at the root of the package are no rooms."""
    present = {room(path) for path in modules() if "/" in path}
    found = [(number, sorted(rooms & present)) for number, rooms in enumerate(FLOORS)]
    return [(number, rooms) for number, rooms in reversed(found) if rooms]


def svg() -> str:
    """The picture, as text."""
    shapes, top = [], MARGIN
    for number, rooms in floors():
        floor, height = draw_floor(number, rooms, top)
        shapes += floor
        top += height + GAP
    bottom = top - GAP
    shapes += arrow_down(MARGIN + 6, MARGIN + 4, bottom - 4)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + MARGIN}" role="img"'
        ' aria-label="Rooms of modular_gpt by floor; a room imports only from floors below it">'
    )
    background = f'<rect width="{WIDTH}" height="{bottom + MARGIN}" rx="8" fill="{PAPER}"/>'
    return "\n".join([head, background, *shapes, "</svg>", ""])


def draw_floor(number: int, rooms: list[str], top: int) -> tuple[list[str], int]:
    """The shapes of a floor whose upper edge is at ``top``, and its height."""
    left = MARGIN + GUTTER
    width = (WIDTH - MARGIN - left - GAP * (len(rooms) - 1)) / len(rooms)
    characters = int((width - 2 * PADDING) / CAPTION_CHARACTER)
    captions = [textwrap.wrap(about(name).replace("``", ""), characters) for name in rooms]
    height = 2 * PADDING + NAME_LINE + CAPTION_LINE * max(len(lines) for lines in captions)
    shapes = [text(MARGIN + 20, top + height / 2 + 6, str(number), 17, QUIET)]
    for index, (name, lines) in enumerate(zip(rooms, captions, strict=True)):
        x = left + index * (width + GAP)
        shapes.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" rx="6" fill="{BOX}" stroke="{EDGE}"/>'
        )
        shapes.append(text(x + PADDING, top + PADDING + 14, name, 16, INK, MONOSPACE, bold=True))
        first = top + PADDING + NAME_LINE + 11
        shapes += [
            text(x + PADDING, first + CAPTION_LINE * line, words, 12.5, QUIET) for line, words in enumerate(lines)
        ]
    return shapes, height


def text(x: float, y: float, words: str, size: float, colour: str, font: str = FONT, bold: bool = False) -> str:
    """One line of text whose baseline starts at (x, y)."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="{font}" font-size="{size}"{weight} fill="{colour}">'
        f"{escape(words)}</text>"
    )


def arrow_down(x: float, top: float, bottom: float) -> list[str]:
    """The one arrow: the direction of every import."""
    return [
        f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom - 8}" stroke="{QUIET}" stroke-width="1.5"/>',
        f'<path d="M {x - 5} {bottom - 9} L {x + 5} {bottom - 9} L {x} {bottom} Z" fill="{QUIET}"/>',
    ]
