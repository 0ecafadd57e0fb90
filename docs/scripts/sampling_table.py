"""The settings of the sampling filters, from the table in the code; tables.py writes them into a page."""

from collections.abc import Iterator

from modular_gpt.generation.sampling import FILTERS

HEAD = ["setting", "default", "meaning", "source"]


def rows() -> Iterator[list[str]]:
    """A row for each filter, in the order in which they are applied."""
    for row in FILTERS:
        source = f"[{row.source.rpartition('/')[2]}]({row.source})" if row.source else ""
        default = "off" if row.default is None else str(row.default)
        yield [f"`{row.name}`", default, row.help, source]
