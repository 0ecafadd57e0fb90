"""Every setting is documented on its page, with its default."""

import re
from dataclasses import MISSING, Field, fields

import pytest

from modular_gpt.core.registry import Entry, entries
from modular_gpt.generation import GenerationConfig
from modular_gpt.model.config import GPTConfig
from modular_gpt.nn.pos.rope import Scaling
from tests.docs.pages import ROOT

PAGES = {
    "attention": "attention.md",
    "ffn": "feedforward.md",
    "norm": "normalization.md",
    "pos": "positional_encoding.md",
}
PARTS = [entry for slot in PAGES for entry in entries(slot).values()]
PARTS = [entry for entry in PARTS if entry.component.__module__.startswith("modular_gpt.")]
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<default>[^|]+?) \|", re.MULTILINE)


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


@pytest.mark.parametrize("entry", PARTS, ids=lambda entry: f"{entry.component.slot}-{entry.name}")
def test_a_component_is_documented(entry: Entry) -> None:
    page = text(PAGES[entry.component.slot])
    assert f"`{entry.name}`" in page
    named = {f.name for f in fields(entry.component.Config)} - {"name"}
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []


def test_rope_scaling_is_documented() -> None:
    page = text("positional_encoding.md")
    assert [f.name for f in fields(Scaling) if f"`{f.name}`" not in page] == []


def test_a_model_is_documented() -> None:
    page = text("model_architecture.md")
    assert [f.name for f in fields(GPTConfig) if f"`{f.name}`" not in page] == []
    settings = {f.name: f for f in fields(GPTConfig)}
    documented = {match["name"]: match["default"] for match in ROW.finditer(page) if match["name"] in settings}
    numbers = {
        name: default
        for name, default in documented.items()
        if default not in ("uniform", "formula") and "," not in default
    }
    assert len(numbers) > 10
    assert [name for name, default in numbers.items() if default not in spelled(settings[name])] == []


def spelled(setting: Field) -> set[str]:
    """The ways in which a table may write a default."""
    if setting.default_factory is not MISSING or setting.default is None:
        return {"off", "none"}
    return {str(setting.default).lower(), f"`{setting.default}`"}


def test_generation_is_documented_with_its_defaults() -> None:
    section = text("generation.md").partition("\n## Settings")[2].partition("\n## ")[0]
    documented = {match["name"]: match["default"] for match in ROW.finditer(section)}
    settings = {f.name: f for f in fields(GenerationConfig)}
    strategies = text("generation.md").partition("## Strategies")[2]
    assert set(documented) <= set(settings)
    assert [name for name in settings if name not in documented and f"`{name}`" not in strategies] == []
    assert [name for name, default in documented.items() if default not in spelled(settings[name])] == []
