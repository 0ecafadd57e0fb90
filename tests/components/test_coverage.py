"""Every registered component and every setting of one has a case."""

from dataclasses import fields

import pytest

from modular_gpt.core.registry import Entry, entries
from modular_gpt.model.config import SLOTS
from tests.components.cases import ALL, EXTRAS, Case, choices, text_settings

OURS = [
    entry for slot in SLOTS for entry in entries(slot).values() if entry.component.__module__.startswith("modular_gpt.")
]
KERNEL_CHOICE = "flex"  # test_backends.py


def of_component(entry: Entry) -> list[Case]:
    """The cases of a component under all of its names."""
    slot = entry.component.slot
    names = [name for name, other in entries(slot).items() if other.component is entry.component]
    return [case for case in ALL if case.slot == slot and case.name in names]


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: f"{entry.component.slot}-{entry.name}")
def test_every_name_has_extra_settings(entry: Entry) -> None:
    assert EXTRAS.get((entry.component.slot, entry.name)), "give it settings worth testing in cases.EXTRAS"


def test_extra_settings_belong_to_registered_names() -> None:
    assert set(EXTRAS) <= {(entry.component.slot, entry.name) for entry in OURS}


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: f"{entry.component.slot}-{entry.name}")
def test_every_setting_changes_in_some_case(entry: Entry) -> None:
    default = entry.component.Config()
    changed = {
        name
        for case in of_component(entry)
        for name, value in {**entries(case.slot)[case.name].settings, **case.settings}.items()
        if value != getattr(default, name)
    }
    assert {f.name for f in fields(entry.component.Config)} - {"name"} <= changed


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: f"{entry.component.slot}-{entry.name}")
def test_every_choice_is_used_in_some_case(entry: Entry) -> None:
    """The message about a wrong value of a text setting lists its choices; each of them has a case."""
    for setting in text_settings(entry.component):
        valid = choices(entry, setting)
        assert valid, f"{setting} takes anything"
        taken = {getattr(getattr(case.config(), case.slot), setting) for case in of_component(entry)}
        assert set(valid) - {KERNEL_CHOICE} <= taken, setting
