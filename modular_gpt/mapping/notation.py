"""The notation of mappings: lines ``hf_name = our_name``, in which braces stand for several lines."""

import re
from collections.abc import Iterator

_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


def pairs(*lines: str) -> Iterator[tuple[str, str]]:
    """Yield both sides of each line ``hf_name = our_name``.

    Braces with commas stand for several lines: ``{a,b} = x.{c,d}`` is ``a = x.c`` and ``b = x.d``. A line without a
    sign has the same name on both sides.
    """
    for line in lines:
        if _CHOICE.search(line) is None:
            hf_name, _, our_name = line.partition(" = ")
            yield hf_name, our_name or hf_name
            continue
        for names in zip(*(choices.split(",") for choices in _CHOICE.findall(line)), strict=True):
            expanded = line
            for name in names:
                expanded = _CHOICE.sub(name, expanded, count=1)
            yield expanded.partition(" = ")[0], expanded.partition(" = ")[2]
