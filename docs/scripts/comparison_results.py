"""Write the tables of finished comparisons into docs/comparison.md, each between its markers.

From the top of the checkout: python docs/scripts/comparison_results.py attention=compares/latest
A section is between ``<!-- measured NAME -->`` and ``<!-- end NAME -->``; if the page does not have these markers, a
section with a heading is added before its last chapter. The numbers depend on the machine, so ``make docs`` does not
change them; benchmarks/comparisons.py runs all comparisons of the page.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # works in a checkout that is not installed

from modular_gpt.comparison import CompareResult, Comparison  # noqa: E402
from modular_gpt.comparison.tables import costs, reproduce, verdicts  # noqa: E402
from modular_gpt.comparison.text_report import rows_of  # noqa: E402

PAGE = ROOT / "docs" / "comparison.md"
LAST = "## What a comparison does not show"
HEADINGS = {"mixers": "Other mixers", "ffn": "Feed-forward networks", "activation": "Activations"}
OF_THIS_MACHINE = ("compares=", "decoding=", "pages=", "trainer.threads=")  # settings that change no loss


def section(result: CompareResult) -> str:
    """Return the command of a comparison, its verdicts in a line, its conditions and remarks, and its tables."""
    arguments = [argument for argument in reproduce(result).split() if not argument.startswith(OF_THIS_MACHINE)]
    command = f"```bash\n{' '.join(arguments)}\n```"
    remarks = "\n".join(f"- {remark}" for remark in result.remarks)
    tables = [rows_of(verdicts(result)), rows_of(costs(result))]
    return "\n\n".join([command, summary(result), f"{result.title}.", remarks, *tables])


def summary(result: CompareResult) -> str:
    """Return the variants by verdict, in one sentence."""
    by_verdict: dict[str, list[str]] = {}
    for name, difference in result.differences.items():
        by_verdict.setdefault(difference.verdict, []).append(name)
    listed = [f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items()]
    return f"Compared with {result.plan.baseline}: {'; '.join(listed)}."


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with ``text`` as the section ``name``."""
    first, last = f"<!-- measured {name} -->", f"<!-- end {name} -->"
    block = f"{first}\n\n{text}\n\n{last}"
    between = re.compile(f"{re.escape(first)}.*?{re.escape(last)}", re.DOTALL)
    if between.search(page):
        return between.sub(lambda match: block, page)
    return page.replace(LAST, f"### {HEADINGS.get(name, name)}\n\n{block}\n\n{LAST}")


def write_sections(page: Path, directories: Mapping[str, Path]) -> None:
    """Replace or add the section of each name by the result of the comparison in its directory."""
    text = page.read_text(encoding="utf-8")
    for name, directory in directories.items():
        text = with_section(text, name, section(Comparison.resumed(str(directory)).result()))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_sections(PAGE, {name: Path(path) for name, _, path in (argument.partition("=") for argument in sys.argv[1:])})
