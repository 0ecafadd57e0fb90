"""Generation with any language model that has a cache: sampling, search, speculation and streaming."""

from modular_gpt.generation.api import complete, generate, stream
from modular_gpt.generation.config import GenerationConfig, SamplingSettings
from modular_gpt.generation.engine import Continuation, Generation, Step, evaluating
from modular_gpt.generation.prompt_cache import PromptCache
from modular_gpt.generation.sequences import left_pad
from modular_gpt.generation.text_prompts import TextTokenizer, generate_text, is_text

GenerationSettings = GenerationConfig  # the former name

__all__ = [
    "Continuation",
    "Generation",
    "GenerationConfig",
    "GenerationSettings",
    "PromptCache",
    "SamplingSettings",
    "Step",
    "TextTokenizer",
    "complete",
    "evaluating",
    "generate",
    "generate_text",
    "is_text",
    "left_pad",
    "stream",
]
