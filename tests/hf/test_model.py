"""The model class: exact round trips, losses and gradients, resizing, the model card."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from modular_gpt import CheckpointError, ConfigError, GPTModel
from modular_gpt.hf import ModularGPTConfig, ModularGPTForCausalLM
from modular_gpt.weights.own_type import PREFIX
from tests.fresh import python
from tests.hf.conftest import attention_name, attentions

MODELS: list[dict[str, Any]] = [
    *({"attention": attention} for attention in attentions()),
    {"tie_embeddings": False, "head_bias": True, "pos": "learned"},
    {"ffn": {"name": "moe", "n_experts": 4, "top_k": 2, "balance": "bias"}},
    {"layers": {"variants": {"local": {"attention": {"window": 3}}}, "cycle": ["local", "base"]}, "pos": "alibi"},
]
Make = Callable[..., GPTModel]


def random_ids(rows: int = 2, count: int = 9) -> Tensor:
    return torch.randint(0, 31, (rows, count), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "settings", MODELS, ids=lambda s: "-".join(map(str, s)) + str(attention_name(s.get("attention", "")))
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_read_back_exactly(
    small: Make, tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    gpt = small(**settings).to(dtype)
    for name, buffer in gpt.named_buffers():
        if name in gpt.state_dict():
            buffer.uniform_()  # different from its initial value
    model = ModularGPTForCausalLM.from_gpt(gpt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not caplog.records
    assert type(reloaded) is ModularGPTForCausalLM and not reloaded.training
    before, after = model.state_dict(), reloaded.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert all(tensor.isfinite().all() for tensor in reloaded.buffers())
    assert torch.equal(model(random_ids()).logits, reloaded(random_ids()).logits)
    assert reloaded.model.config == gpt.config


def test_a_tied_head_is_not_saved_twice(small: Make, tmp_path: Path) -> None:
    ModularGPTForCausalLM.from_gpt(small()).save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "head" in name]


def test_defaults_are_written_to_the_config(tmp_path: Path) -> None:
    ModularGPTConfig().save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert reloaded.gpt == ModularGPTConfig().gpt and "eps" in reloaded.gpt["norm"]
    assert (reloaded.vocab_size, reloaded.hidden_size) == (reloaded.gpt["vocab_size"], reloaded.gpt["d_model"])


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_a_file_that_does_not_match_the_model_is_refused(small: Make, tmp_path: Path, fault: str) -> None:
    ModularGPTForCausalLM.from_gpt(small()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors, name = load_file(path), "model.blocks.1.ffn.up.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "unknown":
        tensors["model.extra"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match="for extra" if fault == "unknown" else f"for {name.removeprefix(PREFIX)}"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("settings", [{}, {"ffn": {"name": "moe", "n_experts": 4, "top_k": 2}}], ids=["dense", "moe"])
def test_the_loss_equals_that_of_the_package(small: Make, settings: dict[str, Any]) -> None:
    gpt = small(**settings).train()
    model, ids = ModularGPTForCausalLM.from_gpt(gpt), random_ids()
    labels = ids.clone()
    labels[0, :4] = -100
    out = model(ids, labels=labels)
    expected = gpt(ids, F.pad(labels[:, 1:], (0, 1), value=-100))
    torch.testing.assert_close(out.loss, expected.loss)
    assert out.past_key_values is None and out.logits.requires_grad
    counted = (labels[:, 1:] != -100).sum()
    halved = model(ids, labels=labels, num_items_in_batch=2 * counted).loss
    extra = sum(value for name, value in expected.parts.items() if name != "cross_entropy")
    torch.testing.assert_close(halved - extra, expected.parts["cross_entropy"] / 2)


@pytest.mark.parametrize("attention", attentions(), ids=attention_name)
def test_a_plain_training_loop_lowers_the_loss(small: Make, attention: Any) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(attention=attention).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = model(random_ids(), labels=random_ids()).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_padding_on_either_side_does_not_change_the_logits(small: Make) -> None:
    model, ids = ModularGPTForCausalLM.from_gpt(small()), random_ids(1)
    alone = model(ids[:, 2:7]).logits
    mask = torch.zeros_like(ids)
    mask[:, 2:7] = 1
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:, 2:7], alone)


def test_gradient_checkpointing_halves_the_saved_activations(small: Make) -> None:
    model = ModularGPTForCausalLM.from_gpt(small(dropout=0.2).train())

    def gradients() -> list[Tensor]:
        torch.manual_seed(5)
        model.zero_grad()
        model(random_ids(), labels=random_ids()).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    def activations() -> int:
        """Number of elements saved for the backward pass."""
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(random_ids(), labels=random_ids())
        return sum(sizes)

    expected, all_activations = gradients(), activations()
    new = hasattr(model, "activation_checkpointing_enable")  # its newer name
    (model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable)()
    for gradient, other in zip(expected, gradients(), strict=True):
        torch.testing.assert_close(gradient, other)
    assert activations() < all_activations / 2
    model._set_gradient_checkpointing(enable=False)
    assert activations() == all_activations


def test_resized_embeddings_are_saved_and_read(small: Make, tmp_path: Path) -> None:
    for tied in (True, False):
        model = ModularGPTForCausalLM.from_gpt(small(tie_embeddings=tied))
        model.resize_token_embeddings(40, mean_resizing=False)
        assert model(random_ids()).logits.shape[-1] == 40
        model.save_pretrained(tmp_path)
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert reloaded.model.config.vocab_size == 40
        assert torch.equal(model(random_ids()).logits, reloaded(random_ids()).logits)
    with pytest.raises(ConfigError, match="head_bias"):
        ModularGPTForCausalLM.from_gpt(small(head_bias=True)).resize_token_embeddings(40)


def test_the_model_card_describes_the_model(small: Make, tmp_path: Path) -> None:
    gpt = small(attention="mla")
    ModularGPTForCausalLM.from_gpt(gpt, training={"step": 7, "data": {"corpus": "abc123"}}).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for excerpt in ("mla", f"{gpt.num_parameters().total:,} parameters", "abc123", "AutoModelForCausalLM"):
        assert excerpt in card
    ModularGPTForCausalLM.from_pretrained(tmp_path).save_pretrained(
        tmp_path
    )  # reads the training settings from config.json
    assert (tmp_path / "README.md").read_text() == card
    (tmp_path / "README.md").write_text("edited")
    ModularGPTForCausalLM.from_gpt(gpt).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "edited"


def test_logits_to_keep_and_return_dict_are_followed(small: Make) -> None:
    model, ids = ModularGPTForCausalLM.from_gpt(small()), random_ids()
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]])
    assert torch.equal(model(ids, return_dict=False)[0], logits)


def test_the_package_does_not_import_transformers(root: Path) -> None:
    code = "import sys, modular_gpt; assert 'transformers' not in sys.modules"
    assert python("-c", code, cwd=root).returncode == 0


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_kernels_named_in_a_config_are_not_loaded(key: str, small: Make, tmp_path: Path) -> None:
    """transformers would download a kernel of that name from the hub and run it."""
    ModularGPTForCausalLM.from_gpt(small()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: "kernels-community/flash-attn"}))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "kernels" not in str(loaded.config._attn_implementation)
    assert torch.equal(loaded(random_ids()).logits, small()(random_ids()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager") is not None


def test_an_index_that_names_another_folder_is_refused_by_the_auto_class(small: Make, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    ModularGPTForCausalLM.from_gpt(small()).save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    weight_map = {f"model.{name}": "../elsewhere.safetensors" for name in small().state_dict()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="has no file"):
        AutoModelForCausalLM.from_pretrained(folder)


def save_small_model(small: Make, folder: Path) -> Path:
    ModularGPTForCausalLM.from_gpt(small()).save_pretrained(folder)
    return folder


def test_folders_are_not_loaded_by_transformers(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loader is not called, so adapters, old weights and code in the folder have no effect."""
    folder = save_small_model(small, tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}))
    save_file({"base_model.model.model.embedding.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit")

    def refuse(*args: Any, **keywords: Any) -> None:
        raise AssertionError("the loader of transformers was called")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    loaded, info = ModularGPTForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and not loaded.training
    assert torch.equal(loaded(random_ids()).logits, small()(random_ids()))


def test_an_adapter_beside_the_model_is_refused_by_the_auto_class(small: Make, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base, folder = save_small_model(small, tmp_path / "base"), save_small_model(small, tmp_path / "folder")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    with pytest.raises(CheckpointError, match="an adapter beside the model, which is not applied automatically"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/absolute"])
def test_an_index_names_only_files_of_its_folder(small: Make, tmp_path: Path, place: str) -> None:
    folder = save_small_model(small, tmp_path / "folder")
    other = (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    target = str(other) if place == "/absolute" else place
    weight_map = {f"model.{name}": target for name in small().state_dict()}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=r"has no file|names a file outside|model\.safetensors"):
            ModularGPTForCausalLM.from_pretrained(folder)
        (folder / index).unlink()


def test_arguments_of_from_pretrained(small: Make, tmp_path: Path) -> None:
    folder = save_small_model(small, tmp_path)
    for name in ("bfloat16", torch.bfloat16, "bf16"):
        assert ModularGPTForCausalLM.from_pretrained(folder, dtype=name, device_map="cpu").dtype == torch.bfloat16
    reloaded = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", device_map={"": "cpu"}, use_cache=False)
    assert reloaded.dtype == torch.float32 and reloaded.config.use_cache is False
    assert torch.equal(reloaded(random_ids()).logits, small()(random_ids()))
    loaded = ModularGPTForCausalLM.from_pretrained(folder, config=reloaded.config)
    assert torch.equal(loaded(random_ids()).logits, reloaded(random_ids()).logits)
    for wrong in ({"quantization_config": {"bits": 4}}, {"strange": 1}, {"device_map": {"a": "cpu", "b": "cpu"}}):
        with pytest.raises(ConfigError):
            ModularGPTForCausalLM.from_pretrained(folder, **wrong)


def test_the_defaults_of_generate_are_read_from_the_folder(small: Make, tmp_path: Path) -> None:
    folder = save_small_model(small, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5], "max_new_tokens": 7}))
    loaded = ModularGPTForCausalLM.from_pretrained(folder)
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.max_new_tokens) == ([3, 5], 7)
    assert loaded.name_or_path == str(folder)
