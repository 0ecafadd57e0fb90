"""Each tensor mapping of a family is used by some model, and no tensor has two mappings."""

from functools import cache

import pytest

from modular_gpt.mapping.tensor_map import TensorMapping, expand
from modular_gpt.model.materialize import meta_model, saved_tensors
from modular_gpt.pretrained import FAMILIES
from tests.reference.cases import CASES


@cache
def used_mappings(model_type: str) -> set[TensorMapping]:
    """Return the mappings that some case of the family uses; check that no tensor has two mappings in one model."""
    family, found = FAMILIES[model_type], set()
    for settings in CASES[model_type].values():
        config = family.config(settings)
        tensors = saved_tensors(meta_model(config))
        pairs = list(expand(family.rules, tensors, config))
        hf_names = [pair.hf_name for pair in pairs]
        our_names = [(name, pair.expert) for pair in pairs for name in pair.our_names]
        assert len(hf_names) == len(set(hf_names)) and len(our_names) == len(set(our_names))
        applied = (m for m in family.rules if any(m.applies(tensors, i) for i in range(config.n_layers)))
        found |= set(applied)
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_mapping_is_used_by_some_model(model_type: str) -> None:
    """Some model of this family uses it, or of another family if the mapping is in a list that families share."""
    unused = {mapping for mapping in FAMILIES[model_type].rules if mapping not in used_mappings(model_type)}
    shared = {mapping for other in FAMILIES if other != model_type for mapping in used_mappings(other) & unused}
    assert all(mapping.hf_name.endswith((".bias", "lm_head.weight")) for mapping in unused - shared)
