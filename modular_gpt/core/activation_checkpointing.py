"""Computing a part of a model a second time, in the backward pass, instead of keeping its activations."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_again = False


def checkpointed(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """``function(x)``, of which x alone is kept for the backward pass (https://arxiv.org/abs/1604.06174).

    The second time gives the same, with the same dropout, if ``function`` changes nothing that it reads.
    """
    if torch.compiler.is_compiling():  # what a forward pass does besides is then not done again
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False, context_fn=_contexts)


def is_recomputing() -> bool:
    """Whether this is the second time, in which nothing is to be counted."""
    return _again


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _second_time()


@contextmanager
def _second_time() -> Iterator[None]:
    global _again
    _again = True
    try:
        yield
    finally:
        _again = False
