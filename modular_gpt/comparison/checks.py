"""Probes each variant's config for a report: properties that do not depend on the text."""

import json
from dataclasses import asdict
from pathlib import Path

from modular_gpt.comparison.budget import gpt_config
from modular_gpt.comparison.diagnostics import Check
from modular_gpt.comparison.diagnostics.quick import cache_bytes, probed
from modular_gpt.comparison.plan import Plan
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.json_files import load_json

CHECKS = "checks.json"


def write_checks(plan: Plan, directory: Path) -> None:
    """Probe a new model of every variant, in milliseconds each, and write checks.json."""
    configs = {name: gpt_config(run, plan.vocab_size) for name, run in plan.variants.items()}
    checks = [check for name, config in configs.items() for check in [*probed(name, config), cache_bytes(name, config)]]
    write_text(directory / CHECKS, json.dumps([asdict(check) for check in checks], indent=1))


def load_checks(directory: Path) -> list[Check]:
    """The checks in checks.json; none if there is no such file."""
    path = directory / CHECKS
    return [Check(**check) for check in load_json(path)] if path.is_file() else []
