"""Errors that a user can correct: the command line prints their message, one sentence, and exits with 2.

A bug of the package is an ``assert`` or any other exception, with its traceback.
"""

import re
from collections.abc import Iterable


class UserError(Exception):
    """An input of the user cannot work; the message names it, its place and a remedy."""


class ConfigError(UserError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or incompatible with another one."""


class DataError(UserError, ValueError):
    """A text, a token file or a tokenizer cannot be used."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not in a supported format."""


class NonFiniteError(UserError, ArithmeticError):
    """A model computes NaN or infinity where a number is needed."""


class ReportedElsewhere(UserError):
    """Another process of the same training reports the error; this process ends without a message."""


def unknown(category: str, name: str, valid: Iterable[str], also: Iterable[str] = (), hint: str = "") -> str:
    """The error message for an unknown name, with the closest valid name, a hint, and all valid names.

    also: further valid names, such as foreign ones, that are suggested but not listed
    """
    valid = sorted(valid)
    close = closest(name, [*valid, *also])
    hint = f" did you mean {close!r}?{hint}" if close else hint
    return f"no {category} {printable(name)!r};{hint} there are: {', '.join(valid)}"


def printable(text: str, limit: int = 100) -> str:
    """Format a name from a file as one short line: control characters become U+FFFD, a long name is shortened."""
    short = text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return "".join(c if c.isprintable() else "\ufffd" for c in short)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name of which ``name`` is a likely misspelling or abbreviation; None if there is none."""
    plain = _plain(name)
    near: dict[str, int] = {}
    for other in valid:
        candidate = _plain(other)
        limit = max(1, min(len(plain), len(candidate)) // 4)
        if _abbreviates(plain, candidate) or (len(candidate) > 2 and plain.startswith(candidate)):
            near[other] = abs(len(candidate) - len(plain)) - 1
        elif abs(len(plain) - len(candidate)) <= limit and (distance := _edit_distance(plain, candidate)) <= limit:
            near[other] = distance
    return min(near, key=lambda other: near[other], default=None)


def _abbreviates(short: str, name: str) -> bool:
    """Whether ``short`` is the first letter of ``name`` and further letters of it in order, as in attn."""
    if len(short) < max(3, 0.4 * len(name)) or short[0] != name[:1]:
        return False
    letters = iter(name[1:])
    return all(letter in letters for letter in short[1:])


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def _edit_distance(a: str, b: str) -> int:
    """Number of insertions, deletions, replacements and swaps of neighbours that turn ``a`` into ``b``."""
    before, last = list[int](), list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            cost = min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and (letter, a[i - 2]) == (b[j - 2], other):
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
