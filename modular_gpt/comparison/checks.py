"""Probes and diagnostic tasks of each variant for a report, which depend on its config and not on the text."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from modular_gpt.comparison.budget import gpt_config
from modular_gpt.comparison.diagnostics import Check
from modular_gpt.comparison.diagnostics.quick import cache_bytes, diagnosed, probed
from modular_gpt.comparison.plan import Plan
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.json_files import load_json

CHECKS, TASKS = "checks.json", "diagnostics.json"


def write_checks(plan: Plan, directory: Path) -> None:
    """Probe a new model of every variant, in milliseconds each, and write checks.json."""
    configs = {name: gpt_config(run, plan.vocab_size) for name, run in plan.variants.items()}
    checks = [check for name, config in configs.items() for check in [*probed(name, config), cache_bytes(name, config)]]
    _save(directory / CHECKS, checks)


def learn_tasks(plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Train small models with the attention of each variant on the diagnostic tasks, and write diagnostics.json.

    Variants whose tasks are in the file already are skipped.
    """
    checks = _load(directory / TASKS)
    finished = {check.variant for check in checks}
    for name, run in plan.variants.items():
        if name not in finished:
            say(f"{name}: diagnostic tasks")
            checks += diagnosed(name, gpt_config(run, plan.vocab_size))
            _save(directory / TASKS, checks)


def load_checks(directory: Path) -> list[Check]:
    """The probes in checks.json and the tasks in diagnostics.json; a missing file has none."""
    return _load(directory / CHECKS) + _load(directory / TASKS)


def _save(path: Path, checks: list[Check]) -> None:
    write_text(path, json.dumps([asdict(check) for check in checks], indent=1))


def _load(path: Path) -> list[Check]:
    return [Check(**check) for check in load_json(path)] if path.is_file() else []
