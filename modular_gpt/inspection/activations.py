"""Recording and editing the tensors inside a model while it runs."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import Observer, observing, unobserved
from modular_gpt.generation import evaluating
from modular_gpt.model import GPTModel

Edit = Callable[[Tensor], Tensor]


class Activations(dict[str, Tensor]):
    """The recorded tensors by name; a name holds the tensor of the last forward pass."""

    def __missing__(self, name: str) -> Tensor:
        near = difflib.get_close_matches(name, self, n=3) or sorted(self)[:3]
        recorded = f"; recorded are {', '.join(near)}" if near else ""
        raise KeyError(f"no tensor '{name}' was recorded{recorded}")

    def stack(self, pattern: str) -> Tensor:
        """The tensors whose names match, in order of their layers, along a new first dimension."""
        return torch.stack([value for name, value in self.items() if fnmatchcase(name, pattern)])


class _Stop(Exception):
    """Ends a forward pass after the last tensor that is needed."""


class _Recorder(Observer):
    """Records copies of the tensors that match a pattern, and edits those that match a pattern of ``edit``."""

    def __init__(self, model: GPTModel, patterns: tuple[str, ...], edit: Mapping[str, Edit], stop: str | None) -> None:
        super().__init__(model)
        self.patterns, self.edit, self.stop = patterns, edit, stop
        self.recorded = Activations()
        self.reported: set[str] = set()

    def wants(self, name: str) -> bool:
        self.reported.add(name)
        return self.edits(name) or self._records(name) or name == self.stop

    def edits(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.edit)

    def _records(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def receive(self, name: str, value: Tensor) -> Tensor:
        self.reported.add(name)
        for pattern, function in self.edit.items():
            if fnmatchcase(name, pattern):
                value = _edited(name, value, function)
        if self._records(name):
            self.recorded[name] = value.detach().clone()
        if name == self.stop:
            raise _Stop(self)
        return value

    def check(self) -> None:
        """Raise a ConfigError for a pattern that no reported tensor has matched."""
        stop = () if self.stop is None else (self.stop,)
        for pattern in (*self.patterns, *self.edit, *stop):
            if not any(fnmatchcase(name, pattern) for name in self.reported):
                raise ConfigError(_no_match(pattern, self.reported))


def _edited(name: str, value: Tensor, function: Edit) -> Tensor:
    with unobserved():  # the function may run a model
        changed = function(value)
    if not isinstance(changed, Tensor) or changed.shape != value.shape:
        got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise ConfigError(f"the edit of {name} must return a tensor of shape {tuple(value.shape)}, got {got}")
    return changed.to(value.device, value.dtype)


def _no_match(pattern: str, reported: Iterable[str]) -> str:
    names = sorted({_of_any_block(name) for name in reported})
    if not names:
        return "no forward pass was observed inside capture(): run the captured model there, without torch.compile"
    others = sorted(name for name in reported if _of_any_block(name) == _of_any_block(pattern))
    if others:
        return f"capture() saw no tensor that matches '{pattern}'; of this model only {', '.join(others)} exist"
    return f"capture() saw no tensor that matches '{pattern}'; this model reports {', '.join(names)}"


def _of_any_block(name: str) -> str:
    """The name with ``*`` in place of the number of its block."""
    return ".".join("*" if item.isdigit() else item for item in name.split("."))


@contextmanager
def capture(
    model: nn.Module, *patterns: str, edit: Mapping[str, Edit] | None = None, stop: str | None = None
) -> Iterator[Activations]:
    """Context manager: record, and edit, the tensors inside a model while it runs.

    Recording changes no result. The names, with i the number of a block and ``*`` in patterns for any text:

    - ``embedding``: (B, T, D) input of the first block; ``blocks.i.residual``: (B, T, D) output of block i;
      ``final``: (B, T, D) after the last norm, from which the head computes logits
    - ``blocks.i.attention.query``, ``.key``, ``.value``: (B, H, T, N), (B, K, S, N), (B, K, S, M) as the kernel gets
      them: rotated, with the keys and values of the cache
    - ``blocks.i.attention.scores``, ``.weights``: (B, H, T, S) before and after the softmax; ``.heads``: (B, H, T, M)
      the sum of values that each head makes; ``.out``: (B, T, D) the output of the attention
    - ``blocks.i.ffn.out``: (B, T, D) output of the feed-forward network; of a mixture of experts also
      ``blocks.i.ffn.router``: (B, T, E) logits and ``.chosen``: (B, T, k) experts

    Scores and weights are computed only where a pattern matches them, since fused kernels do not return them.

    Args:
        model: a GPTModel, or a module that contains one
        patterns: names or patterns of the tensors to record; none: all, or nothing where ``edit`` is given
        edit: functions by name or pattern; the model computes with the tensor that they return
        stop: name of the last tensor that is needed. The forward pass ends after it, and so does the with block.

    Yields:
        the recorded tensors by name, detached copies; of several forward passes, those of the last

    Raises:
        ConfigError: the model is compiled, holds no GPTModel, or never reported a tensor that matches a pattern.
    """
    recorder = _Recorder(_decoder(model), patterns or (() if edit or stop else ("*",)), edit or {}, stop)
    with observing(recorder):
        try:
            yield recorder.recorded
        except _Stop as end:
            if end.args[0] is not recorder:  # of a capture around this one
                raise
    recorder.check()


def tensor_names(model: GPTModel) -> list[str]:
    """The names of all tensors that a model reports, found by a pass over one token."""
    with torch.no_grad(), evaluating(model), capture(model) as seen:
        model(torch.zeros(1, 1, dtype=torch.long, device=model.embedding.weight.device))
    return list(seen)


def _decoder(model: nn.Module) -> GPTModel:
    """The GPTModel in a module. Raises a ConfigError if there is none, or if torch.compile has been applied to it."""
    found = next((module for module in model.modules() if isinstance(module, GPTModel)), None)
    if found is None:
        raise ConfigError(f"capture() takes a GPTModel, got a {type(model).__name__} without one")
    compiled = isinstance(model, torch._dynamo.eval_frame.OptimizedModule)
    if compiled or any(module._compiled_call_impl is not None for module in model.modules()):
        raise ConfigError("a model compiled by torch.compile reports nothing; give capture() the model itself")
    return found
