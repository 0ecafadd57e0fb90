"""Compiled single steps, which share one graph: the cache has a fixed size, and its length is a tensor."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from modular_gpt.core.cache import ModelCache
from modular_gpt.core.observer import refuse_observers
from modular_gpt.generation.protocol import LanguageModel

StepFunction = Callable[[LanguageModel, Tensor, ModelCache], Tensor]

_GRAPHS = 256  # largest number of graphs (models, batch sizes, cache sizes) that PyTorch compiles in one process
_SMALLEST = 128  # columns of a compiled cache


def capacity(tokens: int, context: int) -> int:
    """Number of columns of a compiled cache: a power of two, so that texts of similar length share a graph."""
    return min(max(_SMALLEST, 1 << (tokens - 1).bit_length()), context)


@cache
def compiled_step(backend: str | Callable[..., Any] = "inductor") -> StepFunction:
    """Compile ``(model, ids (B, 1), cache) -> logits (B, 1, V)``: one graph per model, batch size and cache size.

    The graph attends to the whole storage under a mask, so that it does not depend on the length of the text.
    """
    compiled = torch.compile(_step, fullgraph=True, dynamic=False, backend=backend)

    def step(model: LanguageModel, ids: Tensor, cache: ModelCache) -> Tensor:
        refuse_observers("a compiled generation")
        with torch._dynamo.config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=_GRAPHS):
            return compiled(model, ids, cache)

    return step


def _step(model: LanguageModel, ids: Tensor, cache: ModelCache) -> Tensor:
    return model(ids, cache=cache)
