"""Selection of parameters by patterns of their names, such as ``blocks.0.*``, in which * matches any characters."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from modular_gpt.core.errors import ConfigError


def first_match(
    patterns: Iterable[str], names: Iterable[str], setting: str, noun: str = "trained parameter"
) -> dict[str, str]:
    """The first pattern that matches each name, by name; names without a match are left out.

    setting: name of the setting with the patterns; noun: for a name in the error message

    Raises:
        ConfigError: a pattern matches no name; the message lists the closest names.
    """
    patterns, names = list(patterns), list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"{setting}: no {noun} matches {pattern!r}; {_closest(pattern, names)}")
    matches = {name: next((p for p in patterns if fnmatchcase(name, p)), None) for name in names}
    return {name: pattern for name, pattern in matches.items() if pattern is not None}


def _closest(pattern: str, names: list[str]) -> str:
    """A clause with the names closest to a pattern that matches none."""
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"did you mean '{pattern}.*'?"
    prefix = pattern.replace("*", "").strip(".")
    prefixes = {name[: len(prefix)]: name for name in reversed(names)}
    close = [prefixes[start] for start in difflib.get_close_matches(prefix, prefixes, n=2, cutoff=0.7)]
    close += [name for name in difflib.get_close_matches(pattern, names, n=2, cutoff=0.5) if name not in close]
    return f"there are {', '.join((close or names)[:3])} ..."


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Freeze the parameters whose name matches a pattern: they no longer require a gradient.

    Raises:
        ConfigError: a pattern matches no trained parameter, or none is left to train.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = first_match(patterns, trained, "trainer.frozen")
    if frozen and len(frozen) == len(trained):
        raise ConfigError(f"trainer.frozen={list(patterns)} leaves nothing to train; remove a pattern")
    for name in frozen:
        trained[name].requires_grad_(False)
