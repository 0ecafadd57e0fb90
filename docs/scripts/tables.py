"""Write the tables and pictures of the pages that are generated from the code.

A table is between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; a picture is a file in docs/images. From the top
of the checkout: python docs/scripts/tables.py
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # works in a checkout that is not installed

import composed_families  # noqa: E402
import conf_files  # noqa: E402
import families_table  # noqa: E402
import fault_cases  # noqa: E402
import imports_table  # noqa: E402
import kv_cache_table  # noqa: E402
import options_tables  # noqa: E402
import rooms_picture  # noqa: E402
import sampling_table  # noqa: E402
import stored_commands  # noqa: E402

from modular_gpt.core.aliases import (  # noqa: E402
    COMPONENTS,
    MODEL_SETTINGS,
    TRAINING_SETTINGS,
    VOCABULARIES,
    Alias,
)


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings(table: Mapping[str, Alias]) -> str:
    """Accepted names of other programs by the setting of this package."""
    rows: dict[str, list[str]] = {}
    notes = {}
    for foreign_name, alias in table.items():
        our_name = " and ".join(f"`{target}`" for target in alias.targets)
        rows.setdefault(our_name + alias.note, []).append(f"`{foreign_name}`")
        notes[our_name + alias.note] = (our_name, alias.note and f"not converted: {alias.note}")
    return markdown(
        ["setting", "accepted names", ""],
        [(notes[key][0], ", ".join(foreign_names), notes[key][1]) for key, foreign_names in rows.items()],
    )


def names() -> str:
    """Accepted names of other programs by component."""
    rows = [
        (
            slot,
            ", ".join(f"`{name}`" for name in our_names),
            ", ".join(f"`{foreign_name}`" for foreign_name, others in table.items() if others == our_names),
        )
        for slot, table in COMPONENTS.items()
        for our_names in dict.fromkeys(table.values())
    ]
    return markdown(["slot", "component", "accepted names"], rows)


def vocabularies() -> str:
    """Vocabularies of other programs and the positional encodings of their models."""
    return markdown(
        ["vocabulary", "settings that must all be given", "`pos`"],
        [(v.origin, " ".join(f"`{name}`" for name in v.settings), f"`{v.pos}`") for v in VOCABULARIES],
    )


def kv_cache() -> str:
    """Bytes cached by each attention."""
    return markdown(kv_cache_table.HEAD, kv_cache_table.rows())


def rooms() -> str:
    """The rooms of the package by floor."""
    return markdown(imports_table.HEAD, imports_table.rows())


def families() -> str:
    """Published families that can be read and written."""
    return markdown(families_table.HEAD, families_table.rows())


def composed() -> str:
    """Families that the command line composes."""
    return markdown(composed_families.HEAD, composed_families.rows())


def sampling() -> str:
    """Sampling filters, in the order in which they are applied."""
    return markdown(sampling_table.HEAD, sampling_table.rows())


def faults() -> str:
    """Injected faults, with the number of cases of each."""
    return markdown(fault_cases.HEAD, fault_cases.rows())


def group(name: str) -> Callable[[], str]:
    """The options of a group of the command line."""
    return lambda: markdown(options_tables.HEAD, options_tables.rows(name))


TABLES: dict[str, Callable[[], str]] = {
    "words": lambda: settings(MODEL_SETTINGS),
    "training_words": lambda: settings(TRAINING_SETTINGS),
    "names": names,
    "vocabularies": vocabularies,
    "kv_cache": kv_cache,
    "rooms": rooms,
    "families": families,
    "composed_families": composed,
    "sampling": sampling,
    "faults": faults,
    "fault_cases": fault_cases.sums,
    "reference": options_tables.train_groups,
    **options_tables.HELP,
    **{
        name: group(name)
        for name in ("data", "tokenizer", "optim", "schedule", "parallel", "logger", "layers", "model_size")
    },
}


PICTURES: dict[str, Callable[[], str]] = {"rooms.svg": rooms_picture.svg}
IMAGES = ROOT / "docs" / "images"


def region(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """Return a page with each of its tables generated again."""
    for name in re.findall(r"<!-- begin (\w+) -->", text):
        table = TABLES[name]()
        text = region(name).sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)
    return text


if __name__ == "__main__":
    conf_files.write()
    stored_commands.write()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        page.write_text(with_tables(page.read_text()))
    for name, picture in PICTURES.items():
        (IMAGES / name).write_text(picture())
