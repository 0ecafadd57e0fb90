"""Inspection of a running model: recording and editing its tensors, the logit lens, and scores of its heads."""

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
