"""The report as text for a terminal, and as Markdown."""

from modular_gpt.comparison.results import CompareResult
from modular_gpt.comparison.tables import LIMITS, Table, costs, reproduce, tasks, verdicts


def terminal(result: CompareResult) -> str:
    """Format the title, the limits of the result, and both tables in aligned columns."""
    tables = [verdicts(result), costs(result), *([tasks(result)] if result.learned_tasks else [])]
    return "\n\n".join(["\n".join([result.title, *result.remarks]), *map(aligned, tables)])


def aligned(table: Table) -> str:
    """Rows in columns of equal width below a rule."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown(result: CompareResult) -> str:
    """The report as Markdown."""
    lines = [
        f"# {', '.join(result.variants)}",
        f"**{result.title}**",
        "\n".join(f"- {remark}" for remark in result.remarks),
        rows_of(verdicts(result)),
        rows_of(costs(result)),
        *([rows_of(tasks(result))] if result.learned_tasks else []),
        "What this does not show:",
        "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    command = reproduce(result)
    if command:
        lines.append(f"```bash\n{command}\n```")
    return "\n\n".join(lines) + "\n"


def rows_of(table: Table) -> str:
    """A table of Markdown."""
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])
