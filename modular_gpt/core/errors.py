"""Errors that a user can act on. The command line prints their message, one sentence, and exits with 2.

Whatever is our own mistake is an ``assert`` or an ordinary exception, with its traceback.
"""

from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave cannot work; the message says what, where and what to do instead."""


class ConfigError(UserError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or does not go with another one."""


class DataError(UserError, ValueError):
    """A text, a token file or a tokenizer cannot be used."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or not one of ours."""


class NonFiniteError(UserError, ArithmeticError):
    """A model computes NaN or infinity where a number is needed."""


class ReportedElsewhere(UserError):
    """Another process of the same training says what it is; this one only ends."""


def unknown(kind: str, name: str, valid: Iterable[str], also: Iterable[str] = (), hint: str = "") -> str:
    """The sentence for an unknown name: the name, the closest valid one if any is close, a hint, and all valid ones.

    also: further names that are understood, such as foreign ones; they are suggested and not listed
    """
    valid = sorted(valid)
    close = closest(name, [*valid, *also])
    hint = f" did you mean {close!r}?{hint}" if close else hint
    return f"no {kind} {printable(name)!r};{hint} there are: {', '.join(valid)}"


def printable(text: str, limit: int = 100) -> str:
    """A name from a file as one short line: control characters become U+FFFD, and the middle of a long one goes."""
    short = text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return "".join(c if c.isprintable() else "\ufffd" for c in short)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def closest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that ``name`` is a misspelling of, or None; a name that merely looks similar is none."""
    plain = _plain(name)
    near: dict[str, int] = {}
    for other in valid:
        there = _plain(other)
        limit = max(1, min(len(plain), len(there)) // 4)
        if _abbreviates(plain, there) or (len(there) > 2 and plain.startswith(there)):
            near[other] = abs(len(there) - len(plain)) - 1
        elif abs(len(plain) - len(there)) <= limit and (distance := _edits(plain, there)) <= limit:
            near[other] = distance
    return min(near, key=lambda other: near[other], default=None)


def _abbreviates(short: str, name: str) -> bool:
    """Whether ``short`` has the first and further letters of ``name`` in their order: learn_rate, attn."""
    if len(short) < max(3, 0.4 * len(name)) or short[0] != name[:1]:
        return False
    letters = iter(name[1:])
    return all(letter in letters for letter in short[1:])


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _edits(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that make one text of the other."""
    before, last = list[int](), list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        line = [row]
        for column, its in enumerate(other, 1):
            cost = min(last[column] + 1, line[-1] + 1, last[column - 1] + (letter != its))
            if row > 1 and column > 1 and (letter, one[row - 2]) == (other[column - 2], its):
                cost = min(cost, before[column - 2] + 1)
            line.append(cost)
        before, last = last, line
    return last[-1]
