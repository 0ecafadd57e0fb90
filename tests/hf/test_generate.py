"""generate() of transformers: texts equal those without a cache, of this package, and of transformers' GPT-2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from modular_gpt import ConfigError, GPTModel
from modular_gpt.hf import ModularGPTForCausalLM
from modular_gpt.pretrained import load_pretrained
from tests.hf.conftest import attention_name, attentions, has_rows

PROMPT, NEW = 7, 12
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 9, "temperature": 1.3},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "chunks": {"prefill_chunk_size": 3},
}

Make = Callable[..., GPTModel]


def prompts(rows: int = 2) -> Tensor:
    return torch.randint(0, 31, (rows, PROMPT), generator=torch.Generator().manual_seed(1))


def run(model: Any, ids: Tensor, **settings: Any) -> Any:
    torch.manual_seed(3)
    return model.generate(ids, **{"max_new_tokens": NEW, "do_sample": False, **settings})


@pytest.mark.parametrize("attention", attentions(), ids=attention_name)
@pytest.mark.parametrize("method", METHODS)
def test_the_cache_changes_no_token(small: Make, attention: Any, method: str) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention=attention))
    settings = METHODS[method]
    plain = {key: value for key, value in settings.items() if key != "prefill_chunk_size"}
    with_cache = run(model, prompts(), **settings)
    assert torch.equal(with_cache, run(model, prompts(), use_cache=False, **plain))
    assert with_cache.shape[1] == PROMPT + NEW


@pytest.mark.parametrize("attention", attentions(), ids=attention_name)
def test_greedy_text_equals_that_of_this_package(small: Make, attention: Any) -> None:
    model = small(attention=attention)
    assert torch.equal(
        run(ModularGPTForCausalLM.from_gpt(model), prompts()), model.generate(prompts(), NEW, greedy=True)
    )


@pytest.mark.parametrize("attention", attentions(), ids=attention_name)
@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_has_the_predicted_size(small: Make, attention: Any, beams: int) -> None:
    model = small(attention=attention)
    out = run(ModularGPTForCausalLM.from_gpt(model), prompts(), num_beams=beams, return_dict_in_generate=True)
    assert out.past_key_values.get_seq_length() == PROMPT + NEW - 1
    assert out.past_key_values.nbytes() == model.config.cache_bytes(2 * beams, PROMPT + NEW - 1)


@pytest.mark.parametrize("attention", attentions(), ids=attention_name)
def test_ragged_prompts_are_independent(small: Make, attention: Any) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention=attention))
    ids, mask = prompts(3), torch.ones(3, PROMPT, dtype=torch.long)
    mask[1, :2], mask[2, :4] = 0, 0
    together = run(model, ids, attention_mask=mask)
    for row, padding in enumerate((0, 2, 4)):
        alone = run(model, ids[row : row + 1, padding:])
        assert torch.equal(together[row, padding:], alone[0])


@pytest.mark.parametrize("attention", attentions(), ids=attention_name)
def test_generation_continues_from_a_cache(small: Make, attention: Any) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention=attention))
    first = run(model, prompts(), max_new_tokens=4, return_dict_in_generate=True)
    cache = ModularGPTForCausalLM.from_gpt(small(attention=attention))(prompts(), use_cache=True).past_key_values
    continued = run(model, first.sequences, max_new_tokens=NEW - 4, past_key_values=cache)
    assert torch.equal(continued, run(model, prompts()))


@pytest.mark.parametrize("attention", [a for a in attentions() if has_rows(a)], ids=attention_name)
def test_draft_tokens_are_rolled_back(small: Make, attention: Any) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention=attention))
    ids = torch.tensor([[1, 2, 3, 4, 1, 2, 3]])
    expected = run(model, ids)
    assert torch.equal(run(model, ids, prompt_lookup_num_tokens=3), expected)
    draft = ModularGPTForCausalLM.from_gpt(small(attention=attention, n_layers=1))
    assert torch.equal(run(model, ids, assistant_model=draft), expected)


def test_a_constant_state_cannot_roll_back_drafts(small: Make) -> None:
    with pytest.raises(ConfigError, match="attention=linear"):
        run(ModularGPTForCausalLM.from_gpt(small(attention="linear")), prompts(1), prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "chunks"])
@pytest.mark.parametrize("ragged", [False, True])
def test_texts_equal_those_of_gpt2_in_transformers(tmp_path: Path, method: str, ragged: bool) -> None:
    settings = dict(vocab_size=31, n_embd=32, n_layer=2, n_head=4, n_positions=40, initializer_range=0.3)
    reference = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=0, eos_token_id=0)).eval()
    reference.save_pretrained(tmp_path)
    wrapped = ModularGPTForCausalLM.from_gpt(load_pretrained(tmp_path))
    wrapped.generation_config = reference.generation_config
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    if ragged:
        mask[0, :3] = 0
    arguments = {"attention_mask": mask, "pad_token_id": 0, **METHODS[method]}
    assert torch.equal(run(wrapped, prompts(), **arguments), run(reference, prompts(), **arguments))


def test_a_wrong_cache_is_detected(small: Make) -> None:
    """The comparisons above detect a cache whose rows are not reordered with the beams."""
    model = ModularGPTForCausalLM.from_gpt(small())
    expected = run(model, prompts(), num_beams=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modular_gpt.hf.cache.GenerationCache.reorder_cache", lambda self, rows: None)
        assert not torch.equal(run(model, prompts(), num_beams=3), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_implementation": "static"}, "leave it out: this model has its own cache"),
        ({"past_key_values": DynamicCache()}, "past_key_values is a DynamicCache"),
        ({"attention_mask": torch.tensor([[1] * 6 + [0]] * 2)}, "padded on the right"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1]] * 2)}, "between others"),
        ({"max_new_tokens": 60}, "tokens do not fit pos=learned"),
    ],
)
def test_unsupported_settings_are_refused(small: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(ModularGPTForCausalLM.from_gpt(small(pos="learned")), prompts(), **settings)
