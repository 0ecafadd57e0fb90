"""Evaluation of models on texts and records: loss, bits per byte, accuracy, metrics of generated answers.

``modular_gpt.evaluation.harness`` runs tasks of lm-evaluation-harness.
"""

from modular_gpt.evaluation.metrics import missing_packages, score_answers
from modular_gpt.evaluation.perplexity import Evaluation, WindowOptions, evaluate_text, evaluate_tokens, text_loss
from modular_gpt.evaluation.records import (
    Prediction,
    RecordEvaluation,
    RecordOptions,
    answer_questions,
    evaluate_records,
)
from modular_gpt.evaluation.windows import Window, log_probabilities, sliding_windows
from modular_gpt.evaluation.windows import sliding_windows as windows  # the former name

__all__ = [
    "Evaluation",
    "Prediction",
    "RecordEvaluation",
    "RecordOptions",
    "Window",
    "WindowOptions",
    "answer_questions",
    "evaluate_records",
    "evaluate_text",
    "evaluate_tokens",
    "log_probabilities",
    "missing_packages",
    "score_answers",
    "sliding_windows",
    "text_loss",
    "windows",
]
