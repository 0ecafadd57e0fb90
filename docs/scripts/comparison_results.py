"""Write the tables of finished comparisons into docs/comparison.md, each between its markers.

From the top of the checkout: python docs/scripts/comparison_results.py attention=compares/latest
A name stands between ``<!-- measured NAME -->`` and ``<!-- end NAME -->``. The numbers are those of the machine it ran
on, so ``make docs`` leaves them alone.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # works in a checkout that is not installed

from modular_gpt.comparison import Comparison  # noqa: E402
from modular_gpt.comparison.tables import costs, reproduce, verdicts  # noqa: E402
from modular_gpt.comparison.text_report import rows_of  # noqa: E402

PAGE = ROOT / "docs" / "comparison.md"


def section(directory: str) -> str:
    """The command of a comparison, its conditions and remarks, and its tables."""
    result = Comparison.resumed(directory).result()
    remarks = "\n".join(f"- {remark}" for remark in result.remarks)
    command = f"```bash\n{reproduce(result)}\n```"
    return "\n\n".join([command, f"{result.title}.", remarks, rows_of(verdicts(result)), rows_of(costs(result))])


def main(arguments: list[str]) -> None:
    """Replace what stands between the markers of each name."""
    page = PAGE.read_text(encoding="utf-8")
    for argument in arguments:
        name, _, directory = argument.partition("=")
        between = re.compile(rf"(<!-- measured {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
        text = section(directory)
        page, count = between.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)  # noqa: B023
        if count != 1:
            raise SystemExit(f"{PAGE} has no markers for {name}")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
