"""Views of the tensors of files: renamed, filtered, or with rows split in another way."""

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
    """A view with changed names; changes: pairs of a regular expression and its replacement, applied in order."""

    def view(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        result = {}
        for name, tensor in tensors.items():
            for pattern, replacement in changes:
                name = re.sub(pattern, replacement, name)
            result[name] = tensor
        return result

    return view


def language_model(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """A view of the language model of a multimodal model, under the names in files of the language model alone."""
    result = {}
    for name, tensor in tensors.items():
        match = _LANGUAGE_MODEL.fullmatch(name)
        if match is not None:
            short = match["name"].removeprefix("model.")
            result[short if short.startswith(_HEAD) else f"model.{short}"] = tensor
        elif name.startswith(_HEAD):
            result[name] = tensor
    return result


@dataclass(frozen=True)
class RowsOfSeveral:
    """Rows ``start`` to ``stop`` (exclusive) of several tensors, which are concatenated when they are loaded."""

    tensors: tuple[LazyTensor, ...]
    start: int
    stop: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.stop - self.start, *self.tensors[0].shape[1:]))

    def load(self) -> Tensor:
        return torch.cat([tensor.load() for tensor in self.tensors])[self.start : self.stop]


def recut(ends: Sequence[str], like: Sequence[str]) -> View:
    """A view in which the rows of some tensors of a module are split as the rows of other tensors of it are.

    Modules without all of these tensors, or with another total number of rows, are unchanged.

    ends: suffixes of the names of the tensors to split again, in the order of their rows
    like: suffixes of the names of the tensors with the wanted numbers of rows, in the same order
    """

    def view(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        result = dict(tensors)
        for module in [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]:
            names, references = ([module + end for end in suffixes] for suffixes in (ends, like))
            if not tensors.keys() >= {*names, *references}:
                continue
            stored = tuple(tensors[name] for name in names)
            stops = [0, *accumulate(tensors[name].shape[0] for name in references)]
            if stops[-1] == sum(tensor.shape[0] for tensor in stored):
                result |= {name: RowsOfSeveral(stored, *stops[i : i + 2]) for i, name in enumerate(names)}
        return result

    return view
