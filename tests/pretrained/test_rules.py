"""Mappings of tensors are needed, and none is mapped twice."""

from functools import cache

import pytest

from modular_gpt.mapping.tensor_map import TensorMapping, expand
from modular_gpt.model.materialize import meta_model, saved_tensors
from modular_gpt.pretrained import FAMILIES
from tests.reference.cases import CASES


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
