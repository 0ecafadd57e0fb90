"""Reports of the tensors inside a running model, for code that inspects it (``modular_gpt.capture``).

The model and its components pass their tensors through ``report(name, tensor)`` and compute with the tensor that it
returns: the same one, unless an observer edits it. Without an observer a report costs one read of a context variable.
Compiled code reports nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError


class Observer(ABC):
    """Receives the reports of the forward passes of one model.

    scope: prefix of the names that the running module reports, such as ``blocks.3.``
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.scope = ""

    @abstractmethod
    def wants(self, name: str) -> bool:
        """Whether the tensor of this name is recorded or edited; a tensor for observers alone is made only if so."""

    @abstractmethod
    def edits(self, name: str) -> bool:
        """Whether ``receive`` may replace the tensor of this name."""

    @abstractmethod
    def receive(self, name: str, value: Tensor) -> Tensor:
        """Receive a reported tensor. Returns the tensor that the model continues with."""


_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())


def _active() -> tuple[Observer, ...]:
    return () if torch.compiler.is_compiling() else _observers.get()


def is_observed() -> bool:
    """Whether an observer receives the reports of the running code."""
    return bool(_active())


def report(name: str, value: Tensor) -> Tensor:
    """Report a tensor to the observers under ``name``, which is relative to the running block.

    Returns the tensor to continue with: ``value`` unless an observer edits it.
    """
    for observer in _active():
        value = observer.receive(observer.scope + name, value)
    return value


def is_wanted(*names: str) -> bool:
    """Whether an observer records or edits any of these tensors; asked before a tensor is computed for observers."""
    answers = [observer.wants(observer.scope + name) for observer in _active() for name in names]
    return any(answers)


def is_edited(*names: str) -> bool:
    """Whether an observer edits any of these tensors."""
    return any(observer.edits(observer.scope + name) for observer in _active() for name in names)


def enter_block(index: int | None) -> None:
    """Prefix the names of the following reports with block ``index``; None: with no block."""
    for observer in _active():
        observer.scope = "" if index is None else f"blocks.{index}."


def observed_pass(model: nn.Module) -> AbstractContextManager[None]:
    """Context manager around a forward pass of ``model``: observers of other models do not receive its reports."""
    observers = _active()
    if not observers:
        return nullcontext()
    for observer in observers:
        observer.scope = ""
    return _with_observers(tuple(observer for observer in observers if observer.model is model))


def observing(observer: Observer) -> AbstractContextManager[None]:
    """Context manager: ``observer`` receives reports, after the present observers."""
    return _with_observers((*_observers.get(), observer))


def unobserved() -> AbstractContextManager[None]:
    """Context manager: no observer receives reports."""
    return _with_observers(()) if _active() else nullcontext()


def refuse_observers(code: str) -> None:
    """Raise a ConfigError if there is an observer, because ``code`` reports nothing."""
    if _observers.get():
        raise ConfigError(f"{code} reports nothing to capture(); run the model without compiling it")


@contextmanager
def _with_observers(observers: tuple[Observer, ...]) -> Iterator[None]:
    token = _observers.set(observers)
    try:
        yield
    finally:
        _observers.reset(token)
