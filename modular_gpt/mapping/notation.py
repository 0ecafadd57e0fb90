"""The notation of mappings: lines ``theirs = ours``, in which braces stand for several lines."""

import re
from collections.abc import Iterator

_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def pairs(*lines: str) -> Iterator[tuple[str, str]]:
    """The two sides of each line ``theirs = ours``; braces with commas on both sides stand for several such lines."""
    for line in lines:
        if _CHOICE.search(line) is None:
            theirs, _, ours = line.partition(" = ")
            yield theirs, ours or theirs
            continue
        for names in zip(*(choices.split(",") for choices in _CHOICE.findall(line)), strict=True):
            made = line
            for name in names:
                made = _CHOICE.sub(name, made, count=1)
            yield made.partition(" = ")[0], made.partition(" = ")[2]
