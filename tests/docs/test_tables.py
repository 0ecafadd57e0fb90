"""The tables in the pages are what docs/scripts makes of the code today."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from modular_gpt.pretrained import FAMILIES
from tests.docs.pages import ROOT, pages

SCRIPTS = ROOT / "docs" / "scripts"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "scripts"), *sys.path])
    import tables

    return tables


WITH_TABLES = [page for page in pages() if "<!-- begin" in page.read_text()]


@pytest.mark.parametrize("page", WITH_TABLES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_fresh(page: Path, tables: ModuleType) -> None:
    text = page.read_text()
    assert tables.with_tables(text) == text, "write them anew: python docs/scripts/tables.py"


def test_the_pictures_are_fresh(tables: ModuleType) -> None:
    stale = [name for name, picture in tables.PICTURES.items() if (tables.IMAGES / name).read_text() != picture()]
    assert stale == [], "write them anew: python docs/scripts/tables.py"


def test_the_table_of_commands_is_fresh(tables: ModuleType) -> None:
    """What help, completion and mistakes in settings are answered from, without PyTorch."""
    written = tables.stored_commands.TABLE.read_text(encoding="utf-8")
    assert written == tables.stored_commands.content(), "write it anew: python docs/scripts/tables.py"


def test_the_picture_has_every_room_once(tables: ModuleType) -> None:
    drawn = re.findall(r'font-weight="bold"[^>]*>(\w+)<', (tables.IMAGES / "rooms.svg").read_text())
    assert sorted(drawn) == sorted(path.parent.name for path in (ROOT / "modular_gpt").glob("*/__init__.py"))


def test_every_table_is_used(tables: ModuleType) -> None:
    text = "".join(page.read_text() for page in WITH_TABLES)
    assert [name for name in tables.TABLES if f"<!-- begin {name} -->" not in text] == []


def test_a_stale_table_is_seen(tables: ModuleType) -> None:
    text = (ROOT / "docs" / "vocabularies.md").read_text()
    assert tables.with_tables(text.replace("`n_embd`", "`n_embed`", 2)) != text.replace("`n_embd`", "`n_embed`", 2)


def test_predicted_allocated_and_measured_bytes_agree(tables: ModuleType) -> None:
    """Not the table against itself: its three columns against each other, and one row against arithmetic."""
    rows = list(tables.kv_cache_table.rows())
    assert all(predicted == allocated == measured for *_, predicted, allocated, measured in rows)
    two_tensors_heads_width_layers_bytes = 2 * 8 * 16 * 4 * 4
    assert ["mha", "256", f"{256 * two_tensors_heads_width_layers_bytes:,}"] in [row[:3] for row in rows]


def test_every_family_was_measured() -> None:
    """The differences in the table of families are within the tolerances of the tests that measured them."""
    measured = json.loads((SCRIPTS / "family_differences.json").read_text())
    assert measured.keys() == FAMILIES.keys()
    assert all(0 <= ways["written"] < 2e-5 and 0 < ways["read"] < 3e-4 for ways in measured.values())
