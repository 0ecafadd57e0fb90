"""The yaml file of each registered component: its description, its schema, and the values of a preset.

tables.py writes these files into conf/, from the summaries and presets in the code.
"""

from pathlib import Path

from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.schema import SCHEMA
from modular_gpt.cli.setting_docs import plain_text, value_text
from modular_gpt.core.registry import Entry, entries, slots


def content(entry: Entry) -> str:
    """Return the content of the yaml file of a component."""
    values = "".join(f"{key}: {value_text(value)}\n" for key, value in entry.settings.items())
    return f"# {plain_text(entry.summary)}\ndefaults: [{entry.name}{SCHEMA}]\n{values}"


def files() -> dict[Path, str]:
    """Return the content of each component's yaml file by its path."""
    own = ((slot, entry) for slot in slots() for entry in entries(slot).values())
    return {
        conf_dir() / slot / f"{entry.name}.yaml": content(entry)
        for slot, entry in own
        if entry.component.__module__.startswith("modular_gpt.")
    }


def write() -> None:
    """Write the files whose content differs."""
    for path, text in files().items():
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
