"""``generate`` continues from the cache of an earlier call: the tokens are equal, and only new tokens are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from modular_gpt import ConfigError, GPTModel
from modular_gpt.checkpoint.hf_folder import save_model
from modular_gpt.hf import ModularGPTForCausalLM
from tests.generation.test_prompt_cache import tokens_read
from tests.hf.conftest import attention_name, attentions

STREAMING = {"name": "sparse", "pattern": "streaming", "window": 3, "global_tokens": 2}
CONVOLUTION = {"name": "mha", "conv": 3}
CASES = {str(i): attention for i, attention in enumerate([*attentions(), STREAMING, CONVOLUTION])}


def generate(model: Any, ids: Tensor, mask: Tensor, count: int, **settings: Any) -> Any:
    """Call ``generate`` with settings that return the cache; return its result."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 30, **settings}
    return model.generate(ids, attention_mask=mask, max_new_tokens=count, return_dict_in_generate=True, **settings)


def add_turn(out: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences of a result extended by three tokens, and their mask."""
    ids = torch.cat([out.sequences, torch.tensor([[7, 8, 9]]).expand(len(out.sequences), -1)], dim=1)
    return ids, torch.cat([mask, torch.ones(len(ids), ids.shape[1] - mask.shape[1], dtype=torch.long)], dim=1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES, ids=[f"{attention_name(value)}-{case}" for case, value in CASES.items()])
def test_generation_continues_from_an_earlier_cache(case: str, padded: bool, small: Callable[..., GPTModel]) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention=CASES[case]))
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]) if padded else torch.ones(2, 4, dtype=torch.long)
    out = generate(model, ids, mask, 4)
    for _ in range(2):
        ids, mask = add_turn(out, mask)
        fresh = generate(model, ids, mask, 5)
        with tokens_read(model.model) as counts:
            out = generate(model, ids, mask, 5, past_key_values=out.past_key_values)
        assert torch.equal(out.sequences, fresh.sequences)
        assert counts == [2 * (1 + 3), *[2] * 4]
        assert out.past_key_values.get_seq_length() == ids.shape[1] + 4
    assert out.past_key_values.nbytes() == fresh.past_key_values.nbytes()


def test_the_continuation_equals_that_of_transformers(small: Callable[..., GPTModel], tmp_path: Path) -> None:
    gpt = small(attention={"name": "gqa", "n_kv_heads": 2}, ffn="swiglu", norm="rmsnorm", bias=False)
    assert save_model(gpt, tmp_path, "family") == "llama"
    model, reference = ModularGPTForCausalLM.from_gpt(gpt), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, mask = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.ones(2, 4, dtype=torch.long)
    out, expected = generate(model, ids, mask, 4), generate(reference, ids, mask, 4)
    for sampled in (False, True):
        ids, mask = add_turn(out, mask)
        torch.manual_seed(0)
        out = generate(model, ids, mask, 5, past_key_values=out.past_key_values, do_sample=sampled, output_logits=True)
        torch.manual_seed(0)
        expected = generate(
            reference, ids, mask, 5, past_key_values=expected.past_key_values, do_sample=sampled, output_logits=True
        )
        assert torch.equal(out.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits), atol=2e-5, rtol=1e-4)


def test_caches_that_cannot_be_continued_are_refused(small: Callable[..., GPTModel]) -> None:
    model = ModularGPTForCausalLM.from_gpt(small())
    ids, mask = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.long)
    out = generate(model, ids, mask, 4)
    ids, mask = add_turn(out, mask)
    with pytest.raises(ConfigError, match="past_key_values has 1 rows and the prompt 2"):
        generate(model, ids.expand(2, -1), mask.expand(2, -1), 4, past_key_values=out.past_key_values)
    with pytest.raises(ConfigError, match="prompt lookup do not support past_key_values"):
        generate(model, ids, mask, 9, past_key_values=out.past_key_values, prompt_lookup_num_tokens=3)
