"""The instruction format of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca)."""

from modular_gpt.data.templates.turns import TurnTemplate


class AlpacaTemplate(TurnTemplate):
    """Headings ### Instruction: and ### Response:, after a sentence that describes the task."""

    name = "alpaca"
    headings = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}  # noqa: RUF012  a table
    closing = "\n\n"
    behind = "\n\n"
    default_system = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    further_stops = ("### Instruction:",)
