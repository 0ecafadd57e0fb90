"""Two-way mappings between the tensors of a published checkpoint and those of a GPTModel.

A mapping relates one tensor of the checkpoint to one or several of ours, in a line ``hf_name = our_name``::

    modules("{q,k,v,o}_proj = attention.{query,key,value,out}", "model.layers.{layer}.self_attn")
    modules("c_attn = attention.query + attention.key + attention.value", "transformer.h.{layer}.attn", FUSED)

``{layer}`` stands for every layer. ``{expert}``, only in names of the checkpoint, stands for every expert: our experts
are stacked in one tensor, with the expert as the first dimension. A mapping applies if the model has all of our tensors
in it, so one list serves models with and without biases, dense and sparse layers, tied and untied heads. It can also
depend on the config, and on counts in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modular_gpt.mapping.notation import pairs
from modular_gpt.model.config import GPTConfig

LAYER, EXPERT, OURS = "{layer}", "{expert}", "blocks.{layer}."


@dataclass(frozen=True)
class Transform:
    """Conversion of one tensor of a checkpoint to one or several of ours, and its inverse.

    split: (tensor of the checkpoint, shapes of our tensors, count) -> our tensors
    join: (our tensors, count) -> tensor of the checkpoint

    The count is the setting ``counted`` of the mapping, by default the number of heads.
    """

    split: Callable[[Tensor, Sequence[torch.Size], int], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor], int], Tensor]


COPY = Transform(lambda hf, shapes, heads: [hf], lambda tensors, heads: tensors[0])
# our tensors concatenated by rows
FUSED = Transform(
    lambda hf, shapes, heads: hf.split([shape[0] for shape in shapes]), lambda tensors, heads: torch.cat(list(tensors))
)
# for each head, the rows of our tensors concatenated
FUSED_PER_HEAD = Transform(
    lambda hf, shapes, heads: [
        rows.flatten(0, 1) for rows in hf.unflatten(0, (heads, -1)).split([s[0] // heads for s in shapes], dim=1)
    ],
    lambda tensors, heads: torch.cat([tensor.unflatten(0, (heads, -1)) for tensor in tensors], dim=1).flatten(0, 1),
)
# stacked experts (E, rows, ...) with the rows of our tensors interleaved, or concatenated
INTERLEAVED = Transform(
    lambda hf, shapes, heads: [hf[:, i :: len(shapes)] for i in range(len(shapes))],
    lambda tensors, heads: torch.stack(list(tensors), dim=2).flatten(1, 2),
)
STACKED_ROWS = Transform(
    lambda hf, shapes, heads: hf.split([shape[1] for shape in shapes], dim=1),
    lambda tensors, heads: torch.cat(list(tensors), dim=1),
)


def transposed(inner: Transform) -> Transform:
    """Return the transform ``inner`` for matrices that the checkpoint stores as (in, out); vectors are unchanged."""
    return Transform(
        lambda hf, shapes, heads: inner.split(_transpose(hf), shapes, heads),
        lambda tensors, heads: _transpose(inner.join(tensors, heads)),
    )


def _transpose(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim < 2 else tensor.mT


IN_OUT = transposed(COPY)


class TensorMapping(NamedTuple):
    """One tensor of a checkpoint and our corresponding tensors.

    where, unless: the mapping applies only to layers that have the tensor ``where`` and lack the tensor ``unless``
    when: the mapping applies only to models with a config of which this is true
    counted: setting of the attention, such as n_kv_heads, whose value is passed to the transform; without it, n_heads
    """

    hf_name: str
    our_names: tuple[str, ...]
    transform: Transform = COPY
    where: str = ""
    unless: str = ""
    when: Callable[[GPTConfig], bool] | None = None
    counted: str = "n_heads"

    def applies(self, tensors: Mapping[str, Tensor], layer: int) -> bool:
        """Whether this mapping applies to a layer of a model with our ``tensors``."""
        needed = [*self.our_names, *([self.where] if self.where else [])]
        return all(_in_layer(name, layer) in tensors for name in needed) and (
            not self.unless or _in_layer(self.unless, layer) not in tensors
        )


Tensors = list[TensorMapping]


def tensors(line: str, prefix: str = "", transform: Transform = COPY, counted: str = "n_heads") -> Tensors:
    """Return mappings of single tensors; for tensors of layers, our names omit ``blocks.{layer}.``."""
    found = []
    for hf_name, joined_names in pairs(line):
        hf_name = f"{prefix}.{hf_name}" if prefix else hf_name
        start = OURS if LAYER in hf_name else ""
        our_names = tuple(start + name for name in joined_names.split(" + "))
        found.append(TensorMapping(hf_name, our_names, transform, counted=counted))
    return found


def modules(line: str, prefix: str = "", transform: Transform = COPY, counted: str = "n_heads") -> Tensors:
    """Return mappings of the weights and the biases of modules."""
    return [
        mapping._replace(
            hf_name=f"{mapping.hf_name}.{leaf}", our_names=tuple(f"{name}.{leaf}" for name in mapping.our_names)
        )
        for mapping in tensors(line, prefix, transform, counted)
        for leaf in ("weight", "bias")
    ]


def where(our_name: str, mappings: Tensors) -> Tensors:
    """Restrict mappings to layers that have our tensor ``our_name``."""
    return [mapping._replace(where=OURS + our_name) for mapping in mappings]


def unless(our_name: str, mappings: Tensors) -> Tensors:
    """Restrict mappings to layers without our tensor ``our_name``; a mapping with such a restriction keeps it."""
    return [mapping if mapping.unless else mapping._replace(unless=OURS + our_name) for mapping in mappings]


def when(applies: Callable[[GPTConfig], bool], mappings: Tensors) -> Tensors:
    """Restrict mappings to models for whose config ``applies`` is true."""
    return [mapping._replace(when=applies) for mapping in mappings]


class TensorPair(NamedTuple):
    """A mapping for one layer and, if the checkpoint has a tensor per expert, for one expert."""

    hf_name: str
    our_names: tuple[str, ...]
    transform: Transform
    expert: int | None
    n_groups: int

    def targets(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The views of our ``tensors`` that this pair fills."""
        found = [tensors[name] for name in self.our_names]
        return found if self.expert is None else [tensor[self.expert] for tensor in found]

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The checkpoint's tensor, computed from ours."""
        return self.transform.join(self.targets(tensors), self.n_groups)

    def fill(self, tensors: Mapping[str, Tensor], hf_tensor: Tensor) -> None:
        """Copy the checkpoint's tensor into ours."""
        targets = self.targets(tensors)
        split = self.transform.split(hf_tensor, [target.shape for target in targets], self.n_groups)
        for target, values in zip(targets, split, strict=True):
            target.copy_(values)


def expand(mappings: Sequence[TensorMapping], tensors: Mapping[str, Tensor], config: GPTConfig) -> Iterator[TensorPair]:
    """Expand mappings to all layers and experts of a model with this config and our ``tensors``."""
    attentions = [layer.attention for layer in config.layer_configs]
    for mapping in mappings:
        if mapping.when is not None and not mapping.when(config):
            continue
        for layer in range(config.n_layers) if LAYER in mapping.hf_name else [0]:
            if not mapping.applies(tensors, layer):
                continue
            our_names = tuple(_in_layer(name, layer) for name in mapping.our_names)
            hf_name = _in_layer(mapping.hf_name, layer)
            count = getattr(attentions[layer], mapping.counted, None) or config.n_heads
            experts = range(tensors[our_names[0]].shape[0]) if EXPERT in hf_name else (None,)
            for expert in experts:
                yield TensorPair(hf_name.replace(EXPERT, str(expert)), our_names, mapping.transform, expert, count)


def _in_layer(name: str, layer: int) -> str:
    return name.replace(LAYER, str(layer))
