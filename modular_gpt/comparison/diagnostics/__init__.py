"""Diagnostics with known answers: probes without training, and tasks that small models learn in seconds.

print(run(["mha", "mine"])) probes two attentions; ``mgpt-compare --quick attention=mha,mine`` does the same.
"""

from modular_gpt.comparison.diagnostics.learning import Learned, Recipe, learn
from modular_gpt.comparison.diagnostics.probes import PROBES, Answer
from modular_gpt.comparison.diagnostics.quick import run
from modular_gpt.comparison.diagnostics.results import Check, QuickResult
from modular_gpt.comparison.diagnostics.tasks import Task, recall, staircase

__all__ = [
    "PROBES",
    "Answer",
    "Check",
    "Learned",
    "QuickResult",
    "Recipe",
    "Task",
    "learn",
    "recall",
    "run",
    "staircase",
]
