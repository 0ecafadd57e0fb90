"""Turns as lines of a dialogue, for models without special tokens."""

from modular_gpt.data.templates.turns import TurnTemplate


class PlainTemplate(TurnTemplate):
    """Lines that begin with User: and Assistant:; an answer ends with the end of text, or else an empty line."""

    name = "plain"
    headings = {"system": "", "user": "User: ", "assistant": "Assistant:"}  # noqa: RUF012  a table of the class
    lead = " "
    further_stops = ("\nUser:",)
