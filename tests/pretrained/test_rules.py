"""Rules between tensor names go both ways, and each is needed."""

from functools import cache

import pytest
import torch

from modular_gpt.model.materialize import meta_model, saved_tensors
from modular_gpt.pretrained import FAMILIES
from modular_gpt.pretrained.tensor_map import (
    COPY,
    FUSED,
    FUSED_PER_HEAD,
    INTERLEAVED,
    TensorMapping,
    Transform,
    expand,
    transposed,
)
from tests.reference.cases import CASES

HEADS = 4
TRANSFORMS: dict[str, tuple[Transform, list[tuple[int, ...]], tuple[int, ...]]] = {
    "copy": (COPY, [(8, 3)], (8, 3)),
    "transposed": (transposed(COPY), [(8, 3)], (3, 8)),
    "transposed experts": (transposed(COPY), [(5, 8, 3)], (5, 3, 8)),
    "fused": (FUSED, [(8, 3), (4, 3), (4, 3)], (16, 3)),
    "fused bias": (FUSED, [(8,), (4,), (4,)], (16,)),
    "fused, transposed": (transposed(FUSED), [(8, 3), (4, 3), (4, 3)], (3, 16)),
    "fused per head": (FUSED_PER_HEAD, [(8, 3), (12, 3)], (20, 3)),
    "fused per head, bias": (FUSED_PER_HEAD, [(8,), (8,), (8,)], (24,)),
    "interleaved": (INTERLEAVED, [(5, 6, 3), (5, 6, 3)], (5, 12, 3)),
    "interleaved, transposed": (transposed(INTERLEAVED), [(5, 6, 3), (5, 6, 3)], (5, 3, 12)),
    "interleaved bias": (INTERLEAVED, [(5, 6), (5, 6)], (5, 12)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_there_and_back(name: str) -> None:
    transform, shapes, theirs = TRANSFORMS[name]
    ours = [torch.randn(shape) for shape in shapes]
    joined = transform.join(ours, HEADS)
    assert joined.shape == theirs
    back = transform.split(joined, [each.shape for each in ours], HEADS)
    assert all(torch.equal(a, b) for a, b in zip(ours, back, strict=True))


def test_fused_per_head_by_hand() -> None:
    query, key = torch.tensor([0.0, 1, 2, 3]), torch.tensor([10.0, 11, 12, 13])
    assert FUSED_PER_HEAD.join([query, key], 2).tolist() == [0, 1, 10, 11, 2, 3, 12, 13]


@cache
def used(kind: str) -> set[TensorMapping]:
    """The mappings that some model of the cases needs. No tensor of theirs or ours has two mappings in one model."""
    family, found = FAMILIES[kind], set()
    for settings in CASES[kind].values():
        config = family.config(settings)
        tensors = saved_tensors(meta_model(config))
        links = list(expand(family.rules, tensors, config))
        theirs = [link.hf_name for link in links]
        ours = [(name, link.expert) for link in links for name in link.our_names]
        assert len(theirs) == len(set(theirs)) and len(ours) == len(set(ours))
        found |= {rule for rule in family.rules if any(rule.applies(tensors, i) for i in range(config.n_layers))}
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_rule_is_used_by_some_model(kind: str) -> None:
    """Of this family, or of another one where the mapping is in a list that families share."""
    unused = {rule for rule in FAMILIES[kind].rules if rule not in used(kind)}
    shared = {rule for other in FAMILIES if other != kind for rule in used(other) & unused}
    assert all(rule.hf_name.endswith((".bias", "lm_head.weight")) for rule in unused - shared)
