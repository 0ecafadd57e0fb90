"""Weights are transferred from the components of one family to those of another and back; all tensors are reported."""

from functools import cache

import pytest
import torch

from modular_gpt import GPTModel, compose
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.families import family_files
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import saved_tensors
from modular_gpt.model.surgery import CONVERTED, LOADED, SKIPPED
from modular_gpt.pretrained import transplant
from tests.reference.cases import ids

FAMILIES = list(family_files([conf_dir()]))
TINY = ("model_size.d_model=32", "model_size.n_heads=4", "model_size.n_layers=3", "model_size.context_length=32")


@cache
def config_of(family: str) -> GPTConfig:
    return GPTConfig.from_dict({**compose(f"family={family}", *TINY).model.to_dict(), "vocab_size": 61})


def model(family: str) -> GPTModel:
    """Weights without zeros and ones."""
    torch.manual_seed(0)
    made = GPTModel(config_of(family)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


CHAIN = list(zip(FAMILIES, [*FAMILIES[1:], FAMILIES[0]], strict=True))
STAR = [pair for family in FAMILIES if family != "gpt2" for pair in ((family, "gpt2"), ("gpt2", family))]


@pytest.mark.parametrize(("before", "after"), dict.fromkeys([*CHAIN, *STAR]))
def test_transfer_between_any_two_families(before: str, after: str) -> None:
    """Every tensor of both models is reported once, the embeddings are kept, and the source is unchanged."""
    source, config = model(before), config_of(after)
    copied = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    made, report = transplant(source, config)
    new = [row.name for row in report.rows if row.status != SKIPPED]
    assert sorted(new) == sorted(saved_tensors(made)) and len(new) == len(set(new))
    assert {row.name for row in report.rows if row.status == SKIPPED} <= set(saved_tensors(source))
    assert torch.equal(made.embedding.weight, source.embedding.weight)
    assert all(torch.equal(tensor, copied[name]) for name, tensor in source.state_dict().items())
    with torch.no_grad():
        assert made(ids(61)).isfinite().all()


def test_gpt2_to_llama_and_back() -> None:
    """Common weights return unchanged, shared heads are means, and the rest is reported as new."""
    source = model("gpt2")
    llama, there = transplant(source, config_of("llama"))
    again, back = transplant(llama, source.config)
    by_name = {row.name: row for row in there.rows if row.status != SKIPPED}
    first = "blocks.0.attention"
    assert by_name["embedding.weight"].status == LOADED and by_name["head.weight"].how == "the embedding"
    assert by_name[f"{first}.key.weight"].status == CONVERTED and "means of" in by_name[f"{first}.key.weight"].how
    assert {"positions.0.table.weight", "final_norm.bias"} <= {row.name for row in there.rows if row.status == SKIPPED}
    assert {name.split(".")[2] for name in there.new_weights()} == {"ffn"}
    kept = ("embedding.weight", f"{first}.query.weight", f"{first}.out.weight", "final_norm.weight")
    for name in kept:
        assert torch.equal(again.get_parameter(name), source.get_parameter(name)), name
    assert "positions.0.table.weight" in back.new_weights() and f"{first}.key.weight" not in back.new_weights()
    key, shared = again.get_parameter(f"{first}.key.weight"), llama.get_parameter(f"{first}.key.weight")
    assert torch.equal(key, shared.repeat(len(key) // len(shared), 1))
