"""``output_attentions`` and ``output_hidden_states`` equal those of models of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from modular_gpt import ConfigError, GPTModel
from modular_gpt.hf import ModularGPTForCausalLM

Make = Callable[..., GPTModel]
BOTH = {"output_attentions": True, "output_hidden_states": True}


def hf_models() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    shared = {"vocab_size": 31, "attn_implementation": "eager"}
    gpt2 = GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=40, **shared)
    llama = LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=48,
        **shared,
    )
    return [GPT2LMHeadModel(gpt2).eval(), LlamaForCausalLM(llama).eval()]


@torch.no_grad()
def test_layer_outputs_equal_those_of_transformers(tmp_path: Path) -> None:
    ids = torch.randint(31, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for hf_model in hf_models():
        hf_model.save_pretrained(tmp_path / hf_model.config.model_type)
        wrapped = ModularGPTForCausalLM.from_gpt(GPTModel.from_pretrained(tmp_path / hf_model.config.model_type))
        expected = hf_model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **BOTH)
        actual = wrapped(ids, attention_mask=mask, **BOTH)
        text = mask.bool()
        assert len(actual.attentions) == len(expected.attentions) == 2
        assert len(actual.hidden_states) == len(expected.hidden_states) == 3
        for weights, hf_weights in zip(actual.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(
                weights.transpose(1, 2)[text], hf_weights.transpose(1, 2)[text], atol=1e-5, rtol=1e-4
            )
        for states, hf_states in zip(actual.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(states[text], hf_states[text], atol=1e-5, rtol=1e-4)


def test_only_requested_outputs_are_returned(small: Make) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention="gqa"))
    ids = torch.randint(31, (2, 9))
    plain = model(ids)
    assert plain.attentions is None and plain.hidden_states is None
    states = model(ids, output_hidden_states=True)
    assert states.attentions is None and torch.equal(states.logits, plain.logits)
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 3
    assert model(ids, output_hidden_states=False).hidden_states is None
    assert len(model(ids, output_attentions=True, return_dict=False)) == 3


def test_gradients_reach_the_model_through_hidden_states(small: Make) -> None:
    model = ModularGPTForCausalLM.from_gpt(small())
    model(torch.randint(31, (2, 9)), **BOTH).hidden_states[-1].square().sum().backward()
    assert model.model.embedding.weight.grad is not None


@torch.no_grad()
def test_generate_returns_layer_outputs_for_each_token(small: Make) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention="mla"))
    ids = torch.randint(31, (1, 5))
    out: Any = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, **BOTH)
    assert [step[0].shape[-2:] for step in out.attentions] == [(5, 5), (1, 6), (1, 7)]
    whole = model(out.sequences[:, :-1], **BOTH)
    torch.testing.assert_close(out.hidden_states[2][2][:, 0], whole.hidden_states[2][:, -1], atol=1e-4, rtol=1e-4)


def test_an_attention_without_attention_weights_is_refused(small: Make) -> None:
    model = ModularGPTForCausalLM.from_gpt(small())
    model.model.blocks[1].attention.forward = lambda x, pos, cache=None: x  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"this attention has no blocks\.1\.attention\.weights; leave it out"):
        model(torch.randint(31, (1, 5)), output_attentions=True)
