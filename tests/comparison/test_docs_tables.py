"""Scripts that measure and write the tables of docs/comparison.md."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from modular_gpt.cli.compare_task import read_task
from modular_gpt.cli.composition.conf_dir import conf_dir
from tests.comparison.small import invented

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), str(ROOT / "docs" / "scripts"), *sys.path])
    import comparison_results
    import comparisons

    return comparisons, comparison_results


def test_a_section_is_replaced_or_added(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, results = scripts
    text = results.section(invented(tmp_path, {"mha": [2.0, 2.1, 2.2], "a": [2.5, 2.6, 2.7], "b": [1.5, 1.6, 1.7]}))
    assert "Compared with mha: worse: a; better: b." in text and "| a | worse | +0.5000 |" in text
    page = f"# Page\n\n<!-- measured attention -->\nold\n<!-- end attention -->\n\n{results.LAST}\n"
    once = results.with_section(page, "attention", text)
    assert "old" not in once and once.count("| a | worse |") == 1
    added = results.with_section(once, "ffn", "first")
    assert added.index("### Feed-forward networks") < added.index("first") < added.index(results.LAST)
    assert results.with_section(added, "ffn", "second") == added.replace("first", "second")


@pytest.mark.parametrize("name", ["attention", "activation", "handicap"])
def test_the_settings_of_the_script_are_valid(name: str, scripts: tuple[ModuleType, ModuleType]) -> None:
    comparisons, _ = scripts
    settings = [*comparisons.COMPARISONS[name], *comparisons.COMMON]
    task = read_task(settings, [conf_dir()])
    swept = next(setting for setting in settings if "," in setting)
    assert len(task.variants) == swept.count(",") + 1 and task.config.seeds == 5 and not task.config.decoding
