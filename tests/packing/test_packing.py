"""A packed model computes what the plain one does, for every attention and feed-forward part."""

import copy

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.registry import entries
from modular_gpt.deploy.cpu_packing import PackedLinear, can_pack, pack

PARTS = [("attention", name) for name in entries("attention")] + [("ffn", name) for name in entries("ffn")]


def tiny(**settings: object) -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, init_std=0.2, **settings)).eval()


@pytest.mark.parametrize(("slot", "name"), PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_logits_equal(slot: str, name: str, dtype: torch.dtype) -> None:
    plain = tiny(**{slot: name}).to(dtype)
    packed = pack(copy.deepcopy(plain))
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    ids = torch.arange(24).view(2, 12)
    with torch.inference_mode():
        wanted = plain(ids)
        cache = packed.new_cache(2, 12)
        got = torch.cat(
            [packed(ids[:, :7], cache=cache), *(packed(ids[:, i : i + 1], cache=cache) for i in range(7, 12))], 1
        )
    tolerance = 1e-5 if dtype == torch.float32 else 0.1  # in bfloat16 sums are rounded in another order
    assert (got - wanted).abs().max() <= tolerance * wanted.std()


def test_untied_head_and_biases_are_packed() -> None:
    plain = tiny(tie_embeddings=False, head_bias=True)
    torch.nn.init.normal_(plain.head_bias)
    packed = pack(copy.deepcopy(plain))
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids), plain(ids), rtol=1e-5, atol=1e-5)
    assert isinstance(packed.head, PackedLinear)


def test_what_cannot_be_packed_is_refused() -> None:
    model = tiny().double()
    assert not can_pack(model)
    with pytest.raises(ConfigError, match="float32 and bfloat16"):
        pack(model)
