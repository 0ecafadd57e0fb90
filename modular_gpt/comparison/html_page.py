"""HTML pages of tables and plots without script or network access, for light and dark themes."""

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from modular_gpt.comparison.svg import COLOURS
from modular_gpt.comparison.tables import Table

STYLE = """:root{color-scheme:light dark;--ink:#222;--soft:#5c5c5c;--paper:#fff;--rule:#ddd;--grid:#e8e8e8}
:root{--good:#1a6e2e;--bad:#b3261e;--box:#f4f4f4}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--soft:#a8a8a8;--paper:#161819;--rule:#3a3d40;--grid:#2b2e31}
:root{--good:#6fcf87;--bad:#ff8a80;--box:#212427}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:1.5rem auto;padding:0 1rem}
body{color:var(--ink);background:var(--paper)}a{color:inherit}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .5rem}
.lead{font-weight:600;margin:.3rem 0}ul{margin:.4rem 0;padding-left:1.2rem;color:var(--soft);font-size:14px}
.scroll{overflow-x:auto;margin:.8rem 0}table{border-collapse:collapse;font-size:13.5px;width:100%}
td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
td{font-variant-numeric:tabular-nums}td:first-child,th:first-child,td.verdict,th.verdict{text-align:left}
.better{color:var(--good);font-weight:600}.worse,.fail{color:var(--bad);font-weight:600}.pass{color:var(--good)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:1rem;align-items:start}
svg{display:block;width:100%;height:auto;font:11.5px system-ui,sans-serif;fill:var(--ink)}
.grid{stroke:var(--grid);fill:none}.title{font-weight:600;font-size:13px}.axis{fill:var(--soft)}
.line{fill:none;stroke:var(--c);stroke-width:1.8}.thick{stroke-width:3}.dashed{stroke-dasharray:4 3;stroke-width:1.2}
.zero{stroke:var(--ink);stroke-width:1}.band{fill:var(--c);opacity:.16}.dot{fill:var(--c)}.seed{fill:var(--soft)}
.ring{fill:var(--paper);stroke:var(--c);stroke-width:2}.zone{fill:var(--good);opacity:.14}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.6rem 0}
.key i{display:inline-block;width:1.1em;height:.7em;margin-right:.4em;border-radius:2px;background:var(--c)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--box);padding:.7rem;font-size:13px;border-radius:4px}"""


def page(title: str, sections: Sequence[str]) -> str:
    """A complete HTML page."""
    colours = "".join(f".c{place}{{--c:{colour}}}" for place, colour in enumerate(COLOURS))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{escape(title)}</title>'
        f"<style>{STYLE}{colours}</style></head><body><h1>{escape(title)}</h1>{''.join(sections)}</body></html>\n"
    )


def heading(text: str) -> str:
    """A heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def lead(text: str) -> str:
    """The main sentence of a page."""
    return f'<p class="lead">{escape(text)}</p>'


def items(sentences: Sequence[str]) -> str:
    """A list of sentences; "" for none."""
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""


def key(styles: dict[str, str]) -> str:
    """The key of a plot: each name in its colour."""
    names = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for name, style in styles.items())
    return f'<div class="key">{names}</div>'


def table(rows: Table) -> str:
    """Return a table that scrolls horizontally on narrow pages; the first row has the headings."""
    columns = ["verdict" if name in ("verdict", "result") else "" for name in rows[0]]

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{class_of(column, cell)}>{escape(cell)}</{tag}>" for column, cell in zip(columns, row, strict=True)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    return (
        f'<div class="scroll"><table><thead><tr>{cells(rows[0], "th")}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def class_of(column: str, cell: str) -> str:
    """The classes of a cell: of its column, and of a verdict in it."""
    classes = " ".join(filter(None, [column, cell if column and cell in ("better", "worse", "pass", "fail") else ""]))
    return f' class="{classes}"' if classes else ""


def plots(drawn: Sequence[str]) -> str:
    """Plots side by side if there is room; empty ones are left out."""
    return f'<div class="plots">{"".join(f"<div>{plot}</div>" for plot in drawn if plot)}</div>'


def links(files: Mapping[str, str]) -> str:
    """A link to each file, by name."""
    listed = "".join(f'<li><a href="{escape(quote(file))}">{escape(name)}</a></li>' for name, file in files.items())
    return f"<ul>{listed}</ul>"


def code(text: str) -> str:
    """A command to copy."""
    return f"<pre>{escape(text)}</pre>"
