"""Errors that a user can act on. The command line prints their message, one sentence, and exits with 2.

Whatever is our own mistake is an ``assert`` or an ordinary exception, with its traceback.
"""

import difflib
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


def unknown(kind: str, name: str, valid: Iterable[str], also: Iterable[str] = ()) -> str:
    """The sentence for an unknown name: what it was, the closest valid one, and all valid ones.

    also: further names that are understood, such as foreign ones; they are suggested and not listed
    """
    valid = sorted(valid)
    close = [each for each in difflib.get_close_matches(name, [*valid, *also], n=9) if _same_words(name, each)]
    if not close and "_" not in name:
        close = [each for each in valid if len(each) > 2 and (name.startswith(each) or each.startswith(name))]
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"no {kind} {name!r};{hint} there are: {', '.join(valid)}"


def _same_words(name: str, other: str) -> bool:
    """Whether two names differ by spelling; ``attention_dims`` and ``attention_bias`` differ by a whole word."""
    ours, theirs = name.split("_"), other.split("_")
    if len(ours) != len(theirs):
        return difflib.SequenceMatcher(None, name, other).ratio() >= 0.75
    return all(difflib.SequenceMatcher(None, a, b).ratio() >= 0.6 for a, b in zip(ours, theirs, strict=True))


def printable(text: str, limit: int = 100) -> str:
    """A name from a file as one short line: control characters become U+FFFD, and the middle of a long one goes."""
    short = text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return "".join(c if c.isprintable() else "\ufffd" for c in short)
