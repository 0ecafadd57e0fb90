"""Parameters by patterns of their names, such as ``embedding*`` and ``blocks.0.*``; * matches any characters."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from modular_gpt.core.errors import ConfigError


def first_match(
    patterns: Iterable[str], names: Iterable[str], setting: str, described_as: str = "parameter that is trained"
) -> dict[str, str]:
    """The first pattern that fits each name; names that none fits are left out.

    Raises:
        ConfigError: a pattern fits no name at all; says which are near.
    """
    patterns, names = list(patterns), list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"{setting}: no {described_as} fits {pattern!r}; {_near(pattern, names)}")
    found = {name: next((p for p in patterns if fnmatchcase(name, p)), None) for name in names}
    return {name: pattern for name, pattern in found.items() if pattern is not None}


def _near(pattern: str, names: list[str]) -> str:
    below = [name for name in names if name.startswith(f"{pattern}.")]
    if below:
        return f"did you mean '{pattern}.*'?"
    plain = pattern.replace("*", "").strip(".")
    starts = {name[: len(plain)]: name for name in reversed(names)}  # what the part without stars may have meant
    close = [starts[start] for start in difflib.get_close_matches(plain, starts, n=2, cutoff=0.7)]
    close += [name for name in difflib.get_close_matches(pattern, names, n=2, cutoff=0.5) if name not in close]
    return f"there are {', '.join((close or names)[:3])} ..."


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Let the parameters that some pattern fits require no gradient, so that they stay as they are.

    Raises:
        ConfigError: a pattern fits nothing, or nothing is left to train.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = first_match(patterns, trained, "trainer.frozen")
    if frozen and len(frozen) == len(trained):
        raise ConfigError(f"trainer.frozen={list(patterns)} leaves nothing to train; take a pattern out")
    for name in frozen:
        trained[name].requires_grad_(False)
