"""The name of a run, from the settings in which it differs from the default."""

import re
from collections.abc import Container, Sequence

from modular_gpt.cli.composition.overrides import Override

LONGEST = 60  # characters of a name, so that paths do not become too long
# settings that are left out of names, since they do not describe the model or its data
SILENT = ("name", "runs", "resume", "init_from", "experiment", "trainer", "parallel", "logger", "data.path")


def about_the_model(key: str) -> bool:
    """Whether the name of a run contains a setting."""
    return not any(key == silent or key.startswith(f"{silent}.") for silent in SILENT)


def run_name(overrides: Sequence[Override], groups: Container[str]) -> str:
    """``gqa-n_kv_heads=2`` for ``attention=gqa attention.n_kv_heads=2``; empty for nothing."""
    settings = []
    for override in overrides:
        setting = override.key.rpartition(".")[2]
        settings.append(override.value if override.key in groups else f"{setting}={override.value}")
    plain = [re.sub(r"[^\w.+=-]+", "_", text).strip("_.-") for text in settings]
    return _joined(list(filter(None, plain)))


def _joined(settings: Sequence[str]) -> str:
    """As many of the settings, with hyphens between them, as fit into a name; a first one that is too long is cut."""
    name = settings[0][:LONGEST].rstrip("-_.") if settings else ""
    for setting in settings[1:]:
        if len(name) + 1 + len(setting) > LONGEST:
            break
        name = f"{name}-{setting}"
    return name
