"""Inspection of a running model: its tensors by name, edits of them, the logit lens and measures of its heads."""

from modular_gpt.inspection.activations import Activations, capture
from modular_gpt.inspection.heads import ablate_heads, attention_maps, head_scores
from modular_gpt.inspection.lens import logit_lens
from modular_gpt.inspection.page import MAX_TOKENS, describe, write_page

__all__ = [
    "MAX_TOKENS",
    "Activations",
    "ablate_heads",
    "attention_maps",
    "capture",
    "describe",
    "head_scores",
    "logit_lens",
    "write_page",
]
