"""Two-way rules between the tensors of a published checkpoint and ours; data, and the engine that expands them.

A rule joins one tensor of theirs to one or several of ours::

    Rule("transformer.h.{layer}.attn.c_attn.bias", ("blocks.{layer}.attention.query.bias", ...), FUSED)

``{layer}`` stands for every layer. ``{expert}``, which only their name has, stands for every expert: ours are stacked
in one tensor, whose first dimension counts experts. A rule applies where the model has the tensors of ours, so one
list serves models with and without biases, dense and sparse layers, tied and untied heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LAYER, EXPERT = "{layer}", "{expert}"


@dataclass(frozen=True)
class Transform:
    """How one tensor of theirs becomes ours, and back.

    split: (theirs, shapes of ours, query heads) -> ours; join: (ours, query heads) -> theirs
    """

    split: Callable[[Tensor, Sequence[torch.Size], int], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor], int], Tensor]


COPY = Transform(lambda theirs, shapes, heads: [theirs], lambda ours, heads: ours[0])
# rows of the first, then of the second, ...
FUSED = Transform(
    lambda theirs, shapes, heads: theirs.split([shape[0] for shape in shapes]),
    lambda ours, heads: torch.cat(list(ours)),
)
# for each head the rows of the first, then of the second, ...
FUSED_PER_HEAD = Transform(
    lambda theirs, shapes, heads: [
        part.flatten(0, 1) for part in theirs.unflatten(0, (heads, -1)).split([s[0] // heads for s in shapes], dim=1)
    ],
    lambda ours, heads: torch.cat([each.unflatten(0, (heads, -1)) for each in ours], dim=1).flatten(0, 1),
)
# stacked experts: a row of the first, then one of the second, ...
INTERLEAVED = Transform(
    lambda theirs, shapes, heads: [theirs[:, i :: len(shapes)] for i in range(len(shapes))],
    lambda ours, heads: torch.stack(list(ours), dim=2).flatten(1, 2),
)


def transposed(inner: Transform) -> Transform:
    """``inner`` for matrices that are stored as (in, out)."""
    return Transform(
        lambda theirs, shapes, heads: inner.split(theirs.mT, shapes, heads),
        lambda ours, heads: inner.join(ours, heads).mT,
    )


class TensorMapping(NamedTuple):
    """One tensor of theirs and what it is called here; only in models that have ``where`` and have not ``unless``."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform = COPY
    where: str = ""
    unless: str = ""

    def applies(self, tensors: Mapping[str, Tensor], layer: int) -> bool:
        """Whether a model with our ``tensors`` has what this rule is about, in this layer."""
        needed = [*self.ours, *([self.where] if self.where else [])]
        return all(_in_layer(name, layer) in tensors for name in needed) and (
            not self.unless or _in_layer(self.unless, layer) not in tensors
        )


class TensorPair(NamedTuple):
    """A rule applied to one layer and, where they are separate, to one expert of a model."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    expert: int | None
    heads: int

    def targets(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The parts of our ``tensors`` that this link fills."""
        found = [tensors[name] for name in self.ours]
        return found if self.expert is None else [tensor[self.expert] for tensor in found]

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor of theirs, made from ours."""
        return self.transform.join(self.targets(tensors), self.heads)

    def fill(self, tensors: Mapping[str, Tensor], theirs: Tensor) -> None:
        """Copy the tensor of theirs into ours."""
        targets = self.targets(tensors)
        parts = self.transform.split(theirs, [target.shape for target in targets], self.heads)
        for target, part in zip(targets, parts, strict=True):
            target.copy_(part)


def expand(
    rules: Sequence[TensorMapping], tensors: Mapping[str, Tensor], n_layers: int, heads: int
) -> Iterator[TensorPair]:
    """Every link between a checkpoint and a model with our ``tensors``, by name."""
    for rule in rules:
        for layer in range(n_layers) if LAYER in rule.theirs else [0]:
            if not rule.applies(tensors, layer):
                continue
            ours = tuple(_in_layer(name, layer) for name in rule.ours)
            theirs = _in_layer(rule.theirs, layer)
            if EXPERT not in theirs:
                yield TensorPair(theirs, ours, rule.transform, None, heads)
                continue
            for expert in range(tensors[ours[0]].shape[0]):
                yield TensorPair(theirs.replace(EXPERT, str(expert)), ours, rule.transform, expert, heads)


def _in_layer(name: str, layer: int) -> str:
    return name.replace(LAYER, str(layer))


def affine(theirs: str, *ours: str, weight: Transform = COPY, bias: Transform = COPY) -> list[TensorMapping]:
    """The rules for ``.weight`` and ``.bias`` of a layer."""
    return [
        TensorMapping(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), weight),
        TensorMapping(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours), bias),
    ]
