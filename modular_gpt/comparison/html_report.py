"""The report of a comparison as an HTML page."""

from modular_gpt.comparison import html_page as html
from modular_gpt.comparison import plots
from modular_gpt.comparison.results import CompareResult
from modular_gpt.comparison.tables import LIMITS, checks, costs, reproduce, tasks, verdicts

PROBES = "Probes: properties that follow from the settings, whatever the text"
TASKS = "Tasks: small models of one or two layers, and the answers that follow from the architecture"


def page(result: CompareResult) -> str:
    """The HTML page of a result."""
    names = list(result.variants)
    command = reproduce(result)
    sections = [
        html.lead(result.title),
        html.items(result.remarks),
        html.table(verdicts(result)),
        html.key(plots.styles(names)),
        html.plots([plots.differences(result), plots.quality_and_cache(result)]),
        html.heading("Costs"),
        html.table(costs(result)),
        html.plots([plots.loss_curves(result), plots.learning_rates(result), plots.decoding(result)]),
        *([html.heading(PROBES), html.table(checks(result))] if result.checks else []),
        *([html.heading(TASKS), html.table(tasks(result))] if result.learned_tasks else []),
        *([html.heading("What a trained model does with a text"), html.links(result.pages)] if result.pages else []),
        *([html.heading("To repeat this comparison"), html.code(command)] if command else []),
        html.heading("What this does not show"),
        html.items(LIMITS),
    ]
    return html.page(", ".join(names), sections)
