"""The usage examples of five published designs run with changed imports, at small sizes.

docs/testing.md lists the features of each design and their tests.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from modular_gpt import ConfigError, capture, load_model
from modular_gpt.compat import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPTDatasetV1,
    GPTModel,
    SimpleTokenizer,
    TextDataset,
    Trainer,
    create_dataloader_v1,
)
from modular_gpt.core.errors import CheckpointError, DataError
from modular_gpt.data import build_tokenizer
from modular_gpt.training.trainer import Trainer as InnerTrainer

TEXT = "The quick brown fox jumps over the lazy dog. Once upon a time there was a fox.\n" * 12
TRAINER_SETTINGS: dict[str, Any] = {"device": "cpu", "quiet": True}


def design_config(**settings: Any) -> SimpleNamespace:
    """Return a configuration with the names of the first two designs."""
    values = {"n_embd": 32, "num_heads": 4, "n_layers": 2, "vocab_size": 64, "block_size": 16, "dropout": 0.1}
    return SimpleNamespace(**{**values, "attention_type": "flash_attention", "ffn_type": "ff_swiglu", **settings})


def small(**settings: Any) -> GPTModel:
    """Return a model configured with the names of the third design."""
    return GPTModel({**GPT_CONFIG_124M, "vocab_size": 90, "context_length": 16, "emb_dim": 32, "n_heads": 4,
                     "n_layers": 2, **settings})  # fmt: skip


def train_example(text: str = TEXT, epochs: int = 1, **settings: Any) -> tuple[SimpleTokenizer, GPTModel, Trainer]:
    """Run the training example of the fourth design; return its tokenizer, model and trainer."""
    tokenizer = SimpleTokenizer()
    vocab_size = tokenizer.build_vocab(text)
    encoded_text = tokenizer.encode(text, add_special_tokens=False)
    model = GPTModel(
        vocab_size=vocab_size, d_model=32, num_heads=4, num_layers=2, d_ff=64, max_seq_length=128, dropout=0.1
    )
    train_dataset = TextDataset(encoded_text, block_size=16)
    trainer = Trainer(
        model=model,
        train_dataset=train_dataset,
        batch_size=32,
        learning_rate=1e-2,
        max_epochs=epochs,
        **TRAINER_SETTINGS,
        **settings,
    )
    return tokenizer, trainer.train(), trainer


# --- the first design: components by type and class -----------------------------------------------------------------


def test_the_example_with_a_namespace_builds_the_model() -> None:
    config = SimpleNamespace(
        n_embd=256,
        num_heads=8,
        n_layers=6,
        vocab_size=1000,
        block_size=256,
        dropout=0.1,
        attention_type="flash_attention",
        attention_class="FlashAttention",
        ffn_type="ff_swiglu",
        ffn_class="GatedFeedForward",
        norm_type="rmsnorm",
        norm_class="RMSNorm",
    )
    model = GPTModel(config)
    assert model.get_num_params() > 0
    input_ids = torch.randint(0, config.vocab_size, (1, 10))
    assert model(input_ids).shape == (1, 10, 1000)
    assert [model.config.attention.name, model.config.ffn.name, model.config.norm.name] == ["mha", "swiglu", "rmsnorm"]
    assert model.config.pos.name == "sinusoidal"


TYPES = [
    ({"attention_type": "flash_attention", "attention_class": "FlashAttention"}, "attention", "mha"),
    ({"attention_type": "linear_attention", "attention_class": "LinearAttention"}, "attention", "linear"),
    ({"attention_type": "local_window_attention", "attention_class": "LocalWindowAttention"}, "attention", "swa"),
    ({"ffn_type": "ff_standard"}, "ffn", "mlp"),
    ({"ffn_type": "ff_swiglu", "ffn_class": "GatedFeedForward"}, "ffn", "swiglu"),
    ({"ffn_type": "ff_moe"}, "ffn", "moe"),
    ({"norm_type": "layernorm"}, "norm", "layernorm"),
    ({"norm_type": "rmsnorm", "norm_class": "RMSNorm"}, "norm", "rmsnorm"),
    ({"norm_type": "scalenorm"}, "norm", "scalenorm"),
    ({"pos_type": "learned"}, "pos", "learned"),
    ({"pos_type": "sinusoidal"}, "pos", "sinusoidal"),
    ({"pos_type": "rope"}, "pos", "rope"),
    ({"pos_type": "alibi"}, "pos", "alibi"),
]


@pytest.mark.parametrize(("settings", "slot", "name"), TYPES)
def test_components_are_chosen_by_type(settings: dict[str, str], slot: str, name: str) -> None:
    model = GPTModel(design_config(**settings))
    assert getattr(model.config, slot).name == name
    assert model(torch.randint(0, 64, (2, 16))).shape == (2, 16, 64)


def test_blocks_are_pre_norm_with_dropout_and_tied_weights() -> None:
    model = GPTModel(design_config())
    assert model.config.topology == "pre" and model.blocks[0].dropout.p == 0.1 and model.final_norm is not None
    assert model.head is None and model.config.tie_embeddings
    assert float(model.embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_get_num_params_counts_with_and_without_position_embeddings() -> None:
    model = GPTModel(design_config(pos_type="learned"))
    assert model.get_num_params() == sum(parameter.numel() for parameter in model.parameters())
    assert model.get_num_params() - model.get_num_params(non_embedding=True) == 16 * 32


# --- the second design: a yaml file, train.py and inference.py ------------------------------------------------------

YAML = """
n_embd: 32
num_heads: 4
n_layers: 2
block_size: 48
dropout: 0.1
attention_type: flash_attention
ffn_type: ff_swiglu
norm_type: rmsnorm
pos_type: sinusoidal
batch_size: 16
learning_rate: 0.003
weight_decay: 0.01
"""
TRAINING_SETTINGS = ("batch_size", "learning_rate", "weight_decay")


def train_py(folder: Path) -> None:
    """Run the training script of the design: read the yaml, train on characters, save weights and settings."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    training = {name: settings.pop(name) for name in TRAINING_SETTINGS}
    tokenizer = SimpleTokenizer()
    settings["vocab_size"] = tokenizer.build_vocab(TEXT)
    model = GPTModel(SimpleNamespace(**settings))
    dataset = TextDataset(tokenizer.encode(TEXT, add_special_tokens=False), block_size=settings["block_size"], stride=8)
    Trainer(model=model, train_dataset=dataset, max_epochs=2, **training, grad_clip=1.0, **TRAINER_SETTINGS).train()
    saved = {"model": model.state_dict(), "characters": tokenizer.tokenizer.characters, "config": settings}
    torch.save(saved, folder / "gpt_model.pt")


def inference_py(folder: Path, lines: Iterator[str], write: Callable[[str], None]) -> None:
    """Run the inference script of the design: load the model, complete two prompts, then lines until ``quit``."""
    saved = torch.load(folder / "gpt_model.pt", weights_only=True)
    model = GPTModel(SimpleNamespace(**saved["config"]))
    model.load_state_dict(saved["model"])
    model.eval()
    tokenizer = SimpleTokenizer()
    tokenizer.build_vocab(saved["characters"])
    write(f"Parameters: {model.get_num_params():,}")

    def complete(prompt: str) -> str:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        generated = model.generate(ids, max_new_tokens=20, temperature=0.8, top_k=40)
        return tokenizer.decode(generated[0].tolist())

    for prompt in ("The quick brown fox", "Once upon a time"):
        write(complete(prompt))
    for line in lines:
        if line == "quit":
            return
        write("<clear>" if line == "clear" else complete(line))


def test_training_and_inference_scripts_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(YAML)
    train_py(tmp_path)
    output: list[str] = []
    inference_py(tmp_path, iter(["a fox", "clear", "the dog", "quit", "never read"]), output.append)
    assert output[0].startswith("Parameters: ")
    starts = ["The quick brown fox", "Once upon a time", "a fox", "<clear>", "the dog"]
    assert [text[: len(start)] for text, start in zip(output[1:], starts, strict=True)] == starts
    assert all(len(text) > 20 for text in output[1:] if text != "<clear>")


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    clips: list[float] = []
    apply = InnerTrainer.apply_gradients

    def record_clip(self: InnerTrainer, losses: dict[str, torch.Tensor]) -> None:
        clips.append(self.config.gradient_clip)
        apply(self, losses)

    monkeypatch.setattr(InnerTrainer, "apply_gradients", record_clip)
    train_example(TEXT[:200], grad_clip=0.7)
    assert set(clips) == {0.7}


# --- the third design: variants of GPT-2, its data loader and its cache ----------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention_type": "gqa", "num_kv_groups": 2},
    {"attention_type": "mla", "latent_dim": 8},
    {"attention_type": "sliding_window", "sliding_window_size": 4},
]


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_the_cache_of_use_cache_gives_the_logits_of_the_whole_text(settings: dict[str, Any]) -> None:
    model = small(**settings).eval()
    input_ids = torch.randint(0, 90, (1, 12))
    model.reset_kv_cache()
    output = torch.cat([model(chunk, use_cache=True) for chunk in input_ids.split([5, 1, 6], dim=1)], dim=1)
    torch.testing.assert_close(output, model(input_ids), rtol=1e-4, atol=1e-5)


def test_variants_of_attention_have_smaller_caches() -> None:
    plain, grouped, latent, window = (small(**settings).config.cache_bytes(1, 16) for settings in VARIANTS)
    assert grouped == plain // 2 and latent < plain and window < plain


def test_the_parameter_counts_are_those_of_gpt2() -> None:
    """GPT-2 has biases in its query, key and value layers; these configs have none, so they are added here."""
    counts = {}
    for name, config, biases in (
        ("124M", GPT_CONFIG_124M, 12 * 3 * 768),
        ("355M", GPT_CONFIG_355M, 24 * 3 * 1024),
        ("774M", GPT_CONFIG_774M, 36 * 3 * 1280),
        ("1558M", GPT_CONFIG_1558M, 48 * 3 * 1600),
    ):
        with torch.device("meta"):
            counts[name] = GPTModel(config).num_parameters().total + biases
    assert counts == {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}


def test_the_data_loader_gives_sliding_windows_of_gpt2_tokens(tiktoken_cache: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    loader = create_dataloader_v1(
        TEXT, batch_size=4, max_length=8, stride=4, shuffle=False, drop_last=True, num_workers=0
    )
    encoding = tiktoken.get_encoding("gpt2")
    ids = encoding.encode(TEXT)
    x, y = next(iter(loader))
    assert x.tolist() == [ids[start : start + 8] for start in (0, 4, 8, 12)]
    assert torch.equal(x[:, 1:], y[:, :-1])
    dataset = GPTDatasetV1(TEXT, encoding, max_length=8, stride=4)
    assert torch.equal(dataset[2][0], x[2]) and len(dataset) == (len(ids) - 9) // 4 + 1
    with_eos = GPTDatasetV1("a<|endoftext|>b" * 9, encoding, 4, 4)
    assert 50256 in with_eos[0][0].tolist()
    assert len(GPTDatasetV1(TEXT, build_tokenizer("byte"), max_length=8, stride=4)) == (len(TEXT) - 9) // 4 + 1


def test_weights_of_hugging_face_are_loaded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=90, n_embd=32, n_head=4, n_layer=2)
    ).eval()
    reference.save_pretrained(tmp_path)
    ids = torch.randint(0, 90, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(GPTModel.from_pretrained(tmp_path)(ids), reference(ids).logits, rtol=1e-4, atol=1e-5)


def test_data_parallel_wrappers_give_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = small(drop_rate=0.0), torch.randint(0, 90, (2, 16))
    expected = model(ids[:, :-1], ids[:, 1:]).loss
    assert torch.equal(nn.DataParallel(model)(ids[:, :-1], ids[:, 1:]).loss, expected)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        loss = wrapped(ids[:, :-1], ids[:, 1:]).loss
        loss.backward()
        assert torch.equal(loss, expected)
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        destroy_process_group()


# --- the fourth design: a trainer, a tokenizer and sampling ----------------------------------------------------------


def test_the_example_trains_and_generates() -> None:
    tokenizer, model, trainer = train_example(epochs=3)
    losses = trainer.history.train_loss
    assert losses[-1] < 0.9 * losses[0]
    prompt = "The quick brown"
    prompt_encoded = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    model.eval()
    generated = model.generate(prompt_encoded, max_new_tokens=50, temperature=0.8, top_k=40, top_p=0.9)
    generated_text = tokenizer.decode(generated[0].tolist())
    assert generated_text.startswith(prompt) and len(generated[0]) == len(prompt) + 50


def test_the_short_placeholder_text_of_the_example_trains() -> None:
    """The text is shorter than a window, and the prompt has unknown characters."""
    tokenizer, model, trainer = train_example("Short text of a few words")
    assert trainer.settings["batch_size"] == 9 and trainer.history.steps
    shortest = TextDataset(tokenizer.encode("Short", add_special_tokens=False), block_size=128)
    assert len(shortest) == 1 and shortest[0][0].shape == (4,)
    ids = tokenizer.encode("The quick brown", add_special_tokens=False)
    assert tokenizer.decode(model.generate([ids], 5)[0].tolist()).startswith("<unk>h")
    with pytest.raises(DataError, match="two tokens or more, got 1"):
        TextDataset([1], block_size=8)


def test_the_tokenizer_has_special_tokens() -> None:
    tokenizer = SimpleTokenizer()
    with pytest.raises(ConfigError, match=r"call build_vocab\(text\) first"):
        tokenizer.encode("a")
    assert tokenizer.build_vocab("abca") == tokenizer.vocab_size == 3 + 1 + 3
    assert tokenizer.encode("abz", add_special_tokens=False) == [0, 1, 3]
    ids = tokenizer.encode("ab")
    assert ids == [tokenizer.bos_id, 0, 1, tokenizer.eos_id] and tokenizer.decode(ids) == "ab"
    assert tokenizer.decode([*ids, tokenizer.pad_id], skip_special_tokens=False) == "<bos>ab<eos><pad>"


def test_a_training_with_validation_warmup_and_cosine_decay() -> None:
    validation_set = TextDataset([1, 2, 3, 4] * 20, block_size=8)
    model = small(vocab_size=20)
    trainer = Trainer(
        model=model, train_dataset=TextDataset([1, 2, 3, 4] * 30, block_size=8), val_dataset=validation_set,
        batch_size=16, learning_rate=1e-2, max_epochs=3, warmup_steps=4, schedule="cosine", **TRAINER_SETTINGS,
    )  # fmt: skip
    trainer.train()
    history = trainer.history
    assert len(history.validation_loss) >= 3 and history.validation_loss[-1] < history.validation_loss[0]
    rates = history.learning_rate
    assert rates[0] < rates[3] and rates[-1] < 0.5 * max(rates) == pytest.approx(0.5e-2, rel=0.01)


def test_a_checkpoint_of_the_trainer_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer, model, trainer = train_example()
    path = trainer.save_checkpoint(tmp_path / "checkpoint", tokenizer.tokenizer)
    loaded = load_model(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.model.generate("The quick", 10, seed=0).startswith("The quick")
    other = train_example()[2]
    other.model.embedding.weight.data.zero_()
    assert torch.equal(other.load_checkpoint(path).embedding.weight, model.embedding.weight)
    with pytest.raises(CheckpointError, match=r"use modular_gpt\.load_model"):
        Trainer(model=small(), train_dataset=TextDataset([1, 2, 3])).load_checkpoint(path)


def test_positions_are_sinusoidal_and_attention_is_causal() -> None:
    model = train_example(TEXT[:100])[1]
    assert model.config.pos.name == "sinusoidal"
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    changed = ids.clone()
    changed[0, 3] = 9
    with torch.no_grad(), capture(model, "blocks.*.attention.weights") as captured:
        before = model(ids)
    with torch.no_grad():
        assert torch.equal(model(changed)[:, :3], before[:, :3])
    weights = captured["blocks.0.attention.weights"]
    assert torch.equal(weights, weights.tril())
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 5))


# --- the fifth design: layers, their shapes and the hyperparameters ---------------------------------------------------


def test_the_hyperparameters_describe_a_model() -> None:
    hyperparameters = {
        "vocab_size": 50,
        "embedding_dimension": 32,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.1,
    }
    model = GPTModel(**hyperparameters)
    config = model.config
    assert (config.d_model, config.n_layers, config.n_heads, config.dropout) == (32, 2, 4, 0.1)
    assert config.pos.name == "sinusoidal" and config.ffn.activation.startswith("gelu")
    logits, loss = model(torch.randint(50, (3, 7)), torch.randint(50, (3, 7)))
    assert logits.shape == (3, 7, 50) and loss.ndim == 0
    with pytest.raises(ConfigError, match="learning_rate is a setting of a training"):
        GPTModel(**hyperparameters, learning_rate=1e-3)


def test_the_outputs_of_each_layer_have_the_documented_shapes() -> None:
    model = GPTModel(vocab_size=50, embedding_dimension=32, num_layers=2, num_heads=4)
    assert model.embedding.weight.shape == (50, 32)
    with torch.no_grad(), capture(model) as captured:
        model(torch.randint(50, (3, 7)))
    assert captured["blocks.0.attention.query"].shape[0] == 3
    assert captured["blocks.0.attention.weights"].shape == (3, 4, 7, 7)
    assert (
        captured["embedding"].shape
        == captured["blocks.0.attention.out"].shape
        == captured["blocks.1.ffn.out"].shape
        == (3, 7, 32)
    )
    residual = captured["embedding"] + captured["blocks.0.attention.out"] + captured["blocks.0.ffn.out"]
    torch.testing.assert_close(captured["blocks.0.residual"], residual)  # the two skip connections


def test_the_loss_is_the_cross_entropy_of_the_next_token() -> None:
    model = GPTModel(vocab_size=50, embedding_dimension=32, num_layers=2, num_heads=4)
    ids = torch.randint(50, (3, 8))
    logits, loss = model(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
