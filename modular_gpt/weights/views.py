"""Views of the tensors of files: under other names, some of them, or cut in another way."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from modular_gpt.weights.tensor_files import LazyTensor, View

_LANGUAGE_MODEL = re.compile(r"(model\.)?language_model\.(?P<name>.+)")
_HEAD = "lm_head."


def renamed(*changes: tuple[str, str]) -> View:
    """A view with the other names that files have for some tensors: (regular expression, replacement)."""

    def view(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        found = {}
        for name, tensor in tensors.items():
            for pattern, replacement in changes:
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
        return found

    return view


def language_model(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """A view of the language model alone, under the names that its tensors have in files of its own family."""
    found = {}
    for name, tensor in tensors.items():
        inside = _LANGUAGE_MODEL.fullmatch(name)
        if inside is not None:
            short = inside["name"].removeprefix("model.")
            found[short if short.startswith(_HEAD) else f"model.{short}"] = tensor
        elif name.startswith(_HEAD):
            found[name] = tensor
    return found


@dataclass(frozen=True)
class RowsOfSeveral:
    """Rows ``start`` to ``stop`` of tensors that are concatenated when they are loaded."""

    tensors: tuple[LazyTensor, ...]
    start: int
    stop: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.stop - self.start, *self.tensors[0].shape[1:]))

    def load(self) -> Tensor:
        return torch.cat([tensor.load() for tensor in self.tensors])[self.start : self.stop]


def recut(ends: Sequence[str], like: Sequence[str]) -> View:
    """A view in which some tensors of a module have as many rows as others, however a file divides their rows.

    ends, like: how the names of both end, in the order in which the rows follow each other
    """

    def view(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        found = dict(tensors)
        for module in [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]:
            names, others = ([module + end for end in one] for one in (ends, like))
            if not tensors.keys() >= {*names, *others}:
                continue
            stored = tuple(tensors[name] for name in names)
            stops = [0, *accumulate(tensors[name].shape[0] for name in others)]
            if stops[-1] == sum(tensor.shape[0] for tensor in stored):
                found |= {name: RowsOfSeveral(stored, *stops[i : i + 2]) for i, name in enumerate(names)}
        return found

    return view
