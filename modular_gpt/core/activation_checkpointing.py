"""Activation checkpointing: recompute a module in the backward pass instead of keeping its activations."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

R = TypeVar("R")

_recomputing = False


def checkpointed(function: Callable[[Tensor], R], x: Tensor) -> R:
    """Compute ``function(x)`` and save only x for the backward pass, which recomputes the activations.

    The recomputation gives the same values, with the same dropout masks, if ``function`` does not modify its inputs.
    See https://arxiv.org/abs/1604.06174.
    """
    if torch.compiler.is_compiling():  # a compiled recomputation repeats no side effects
        compiled: R = checkpoint(function, x, use_reentrant=False)
        return compiled
    out: R = checkpoint(function, x, use_reentrant=False, context_fn=_contexts)
    return out


def is_recomputing() -> bool:
    """Whether the running forward pass is a recomputation, in which counters must not be updated again."""
    return _recomputing


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _mark_recomputation()


@contextmanager
def _mark_recomputation() -> Iterator[None]:
    global _recomputing
    before, _recomputing = _recomputing, True
    try:
        yield
    finally:
        _recomputing = before
