"""Generation: sampling, search and streaming with any language model that has a cache."""

from modular_gpt.generation.engine import Step, generate, steps
from modular_gpt.generation.settings import GenerationSettings, SamplingSettings
from modular_gpt.generation.text import left_pad

__all__ = ["GenerationSettings", "SamplingSettings", "Step", "generate", "left_pad", "steps"]
