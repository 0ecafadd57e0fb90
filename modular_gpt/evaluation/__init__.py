"""How well a model predicts a text: loss, perplexity, bits per byte, and tasks of lm-evaluation-harness."""

from modular_gpt.evaluation.perplexity import Evaluation, WindowOptions, evaluate_text, evaluate_tokens
from modular_gpt.evaluation.windows import Window, log_probabilities, windows

__all__ = ["Evaluation", "Window", "WindowOptions", "evaluate_text", "evaluate_tokens", "log_probabilities", "windows"]
