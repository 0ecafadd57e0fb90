"""Views of the tensors of a file: renamed tensors, the language model alone, and rows split in other sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.weights import language_model, recut, renamed

QKV, PROJECTIONS = [".q_conv.weight", ".k_conv.weight", ".v_conv.weight"], [".q.weight", ".k.weight", ".v.weight"]


@dataclass(frozen=True)
class InMemory:
    """A tensor in memory with the interface of a tensor of a file."""

    tensor: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def load(self) -> Tensor:
        return self.tensor


def test_names_are_replaced() -> None:
    tensor = InMemory(torch.zeros(1))
    assert renamed((r"\.mlp\.", ".ffn."), (r"^h\.", "layers."))({"h.0.mlp.up": tensor}) == {"layers.0.ffn.up": tensor}


def test_the_language_model_has_the_names_of_its_family() -> None:
    tensor = InMemory(torch.zeros(1))
    names = ["language_model.model.norm", "model.language_model.layers.0.q", "language_model.lm_head.w", "lm_head.v"]
    found = language_model({**dict.fromkeys(names, tensor), "vision_tower.conv": tensor})
    assert list(found) == ["model.norm", "model.layers.0.q", "lm_head.w", "lm_head.v"]


def test_rows_are_split_as_those_of_other_tensors() -> None:
    rows, widths = torch.arange(24.0).reshape(12, 2), (6, 4, 2)
    thirds = dict(zip((f"m{end}" for end in QKV), map(InMemory, rows.split(4)), strict=True))
    others = {f"m{end}": InMemory(torch.zeros(width, 3)) for end, width in zip(PROJECTIONS, widths, strict=True)}
    found = recut(QKV, PROJECTIONS)({**thirds, **others, "norm": InMemory(torch.ones(3))})
    split = [found[name] for name in thirds]
    assert [tensor.shape for tensor in split] == [(width, 2) for width in widths]
    assert all(torch.equal(a.load(), b) for a, b in zip(split, rows.split(widths), strict=True))
    assert found["norm"].shape == (3,) and found["m.q.weight"] is others["m.q.weight"]


def test_rows_without_matching_tensors_are_unchanged() -> None:
    thirds = {f"m{end}": InMemory(torch.zeros(4, 2)) for end in QKV}
    others = {f"m{end}": InMemory(torch.zeros(5, 3)) for end in PROJECTIONS}  # fifteen rows, not twelve
    assert recut(QKV, PROJECTIONS)(thirds) == thirds
    assert recut(QKV, PROJECTIONS)({**thirds, **others}) == {**thirds, **others}
