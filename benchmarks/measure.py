"""Shared helpers of the scripts: measurements of ``modular_gpt.benchmark``, tables, and sections of pages."""

import argparse
import re
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch

from modular_gpt.benchmark.report import markdown_table as table
from modular_gpt.runtime.timing import (
    MIB,
    copy_bandwidth,
    current_memory,
    interleave,
    machine,
    peak_memory,
    reset_peak_memory,
    synchronise,
)
from modular_gpt.runtime.timing import Timed as Variant

__all__ = [
    "MIB",
    "Variant",
    "add_options",
    "copy_bandwidth",
    "current_memory",
    "interleave",
    "machine",
    "peak_memory",
    "reset_peak_memory",
    "run_section",
    "run_sections",
    "speeds",
    "synchronise",
    "table",
    "where",
    "write_section",
]


def write_section(page: Path, name: str, text: str) -> None:
    """Replace the text of a page between ``<!-- measured NAME -->`` and ``<!-- end measured NAME -->``.

    Raises:
        SystemExit: the page has no such section.
    """
    old = page.read_text()
    section = re.compile(rf"(<!-- measured {re.escape(name)} -->\n).*?(<!-- end measured {re.escape(name)} -->)", re.S)
    if not section.search(old):
        raise SystemExit(f"{page} has no line '<!-- measured {name} -->'")
    page.write_text(section.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", old))


def add_options(parser: argparse.ArgumentParser, rounds: int, sections: Collection[str]) -> None:
    """Add the options shared by scripts of several tables."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections), help="tables to measure")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a check of the script, not a measurement")
    parser.add_argument(
        "--partial", type=Path, metavar="FOLDER", help="keep finished tables here and skip them in later calls"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose sections are replaced by the tables")


def run_sections(prefix: str, sections: dict[str, Callable[[Namespace], str]], options: Namespace) -> None:
    """Measure the tables named in ``options.only``."""
    for name in options.only:
        run_section(f"{prefix}-{name}", partial(sections[name], options), options)


def run_section(name: str, measure: Callable[[], str], options: Namespace) -> None:
    """Measure a table unless ``options.partial`` has it, print it, and write it into its section of the page."""
    kept = options.partial and options.partial / f"{name}{'-quick' if options.quick else ''}.md"
    if kept and kept.exists():
        text = kept.read_text()
    else:
        text = measure()
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text)
    print(f"{text}\n", flush=True)
    if options.write:
        write_section(options.write, name, text)


def where() -> str:
    """The machine and the date."""
    return f"{machine(torch.device('cpu'))}, {time.strftime('%Y-%m-%d')}"


def speeds(variants: list[Variant], versus: str = "best peer") -> str:
    """Table of interleaved timings; ratios are within rounds, to the peer with the lowest median."""
    best = min((variant for variant in variants if variant.peer), key=lambda variant: variant.median)
    rows = []
    for variant in variants:
        ratios = [a / b for a, b in zip(best.seconds, variant.seconds, strict=True)]
        speed = variant.tokens / variant.median
        rows.append(
            [
                variant.name,
                f"{variant.median:.4f}",
                f"{variant.spread:.0%}",
                f"{speed:,.0f}",
                f"{statistics.median(ratios):.2f}",
            ]
        )
    return table(["", "seconds", "spread", "tokens/s", f"vs {versus}"], rows)
