"""The help text of each setting, read from the docstring of its dataclass."""

import dataclasses
import inspect
import re
from typing import Any

NEXT_FIELD = re.compile(r"\n\n|^\w+(?:, \w+)*:\s", re.MULTILINE)  # also one that this dataclass leaves out
DOUBLE_BACKTICKS = re.compile(r"``(.+?)``")


def setting_docs(cls: type) -> dict[str, str]:
    """The help text of each field of a dataclass, by name; a field without documentation is left out.

    A docstring documents fields by lines of the form ``field: text`` or ``field, field: text``. A text ends at the
    next documented field or at an empty line. Fields that a subclass does not document keep the text of its base.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    found: dict[str, str] = {}
    for base in cls.__mro__:
        for name, text in _documented(inspect.cleandoc(base.__doc__ or ""), names).items():
            found.setdefault(name, text)
    return found


def _documented(documentation: str, names: list[str]) -> dict[str, str]:
    if not names:
        return {}
    name = "(?:" + "|".join(map(re.escape, names)) + ")"
    starts = list(re.finditer(rf"(?:^|;)\s*({name}(?:, {name})*):\s", documentation, re.MULTILINE))
    ends = [*(start.start() for start in starts[1:]), len(documentation)]
    found: dict[str, str] = {}
    for start, end in zip(starts, ends, strict=False):
        text = sentence(plain_text(NEXT_FIELD.split(documentation[start.end() : end])[0]))
        found.update(dict.fromkeys(start[1].split(", "), text))
    return found


def sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop; an identifier at its beginning keeps its letters."""
    first = text.partition(" ")[0].rstrip(",:;")
    capital = text[:1].upper() + text[1:] if re.fullmatch(r"[a-z]+(-[a-z]+)*", first) else text
    return f"{capital.rstrip(';,')}." if text and text[-1] not in ".!?" else capital


def plain_text(documentation: str) -> str:
    """A text on one line, without the double backticks that mark code in docstrings."""
    return DOUBLE_BACKTICKS.sub(r"\1", " ".join(documentation.split()))


def value_text(value: Any) -> str:
    """A value as it is written on the command line."""
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)
