"""LoRA with the peft library: only adapters are trained, merging is exact, adapters round-trip."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modular_gpt import ConfigError, GPTModel
from modular_gpt.hf import ModularGPTForCausalLM

peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_lora_adapters_are_trained_saved_and_merged(
    small: Callable[..., GPTModel], tmp_path: Path, attention: str
) -> None:
    ids = torch.randint(0, 31, (2, 9))
    targets = ["query", "value"] if attention == "mha" else ["query", "latent"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    model = peft.get_peft_model(ModularGPTForCausalLM.from_gpt(small(attention=attention)), config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    first = model(input_ids=ids, labels=ids).loss
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model(input_ids=ids, labels=ids).loss < first
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    model.eval()
    text, logits = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False), model(input_ids=ids).logits
    model.save_pretrained(tmp_path)
    reloaded = peft.PeftModel.from_pretrained(
        ModularGPTForCausalLM.from_gpt(small(attention=attention)), tmp_path
    ).eval()
    torch.testing.assert_close(reloaded(input_ids=ids).logits, logits)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.generate(ids, max_new_tokens=5, do_sample=False), text)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_the_embedding_requires_an_untied_head(small: Callable[..., GPTModel], tied: bool) -> None:
    """It is refused with tied embeddings; otherwise merging does not change the logits."""
    ids = torch.randint(0, 31, (2, 9))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["embedding"], init_lora_weights=False)
    base = ModularGPTForCausalLM.from_gpt(small(tie_embeddings=tied))
    model = peft.get_peft_model(base, config).eval()
    if tied:
        with pytest.raises(ConfigError, match="not the head that is tied"):
            model(input_ids=ids)
        return
    logits = model(input_ids=ids).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, logits, atol=1e-4, rtol=1e-4)


def test_a_whole_tied_embedding_may_be_trained(small: Callable[..., GPTModel]) -> None:
    ids = torch.randint(0, 31, (2, 9))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["query"], modules_to_save=["embedding"])
    model = peft.get_peft_model(ModularGPTForCausalLM.from_gpt(small(tie_embeddings=True)), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        logits = model(input_ids=ids).logits
        torch.testing.assert_close(model.merge_and_unload()(input_ids=ids).logits, logits, atol=1e-4, rtol=1e-4)
