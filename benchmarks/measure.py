"""What the scripts here share: the measurements of ``modular_gpt.benchmark``, and sections of pages."""

import re
from pathlib import Path

from modular_gpt.benchmark.report import markdown_table as table
from modular_gpt.runtime.timing import (
    MIB,
    copy_bandwidth,
    forget_peak,
    held_memory,
    interleave,
    machine,
    peak_memory,
    synchronise,
)
from modular_gpt.runtime.timing import Timed as Variant

__all__ = [
    "MIB",
    "Variant",
    "copy_bandwidth",
    "forget_peak",
    "held_memory",
    "interleave",
    "machine",
    "peak_memory",
    "synchronise",
    "table",
    "write_section",
]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between ``<!-- measured NAME -->`` and ``<!-- end measured NAME -->``.

    Raises:
        SystemExit: the page has no such section.
    """
    old = page.read_text()
    section = re.compile(rf"(<!-- measured {re.escape(name)} -->\n).*?(<!-- end measured {re.escape(name)} -->)", re.S)
    if not section.search(old):
        raise SystemExit(f"{page} has no line '<!-- measured {name} -->'")
    page.write_text(section.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", old))
