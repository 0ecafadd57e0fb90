"""Estimates before a training agree with the FLOPs and bytes of PyTorch."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.checkpoint import load_checkpoint
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import entries
from modular_gpt.nn.attention.sparse import pattern_of
from modular_gpt.nn.delta_rule import delta_rule
from modular_gpt.optim import build_optimizer
from modular_gpt.training import TrainerConfig, train
from modular_gpt.training.estimate import (
    NO_ADAPTERS,
    Estimate,
    activation_bytes,
    count_flops,
    estimate,
    flops_per_token,
    format_bytes,
    saved_tensors,
    suggest_smaller,
)
from modular_gpt.training.trainer import Trainer
from tests.fresh import processes
from tests.training.small import EXPLAINED, config, run, run_with_little_memory

SMALL: dict[str, Any] = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 2, "context_length": 24}
PARTS = [(slot, name) for slot in ("attention", "ffn", "norm", "pos") for name in entries(slot)]


def rows(count: int, **settings: Any) -> TrainerConfig:
    return TrainerConfig(batch_size=count, **settings)


def described(slot: str, name: str, **settings: Any) -> GPTConfig:
    return GPTConfig(**{**SMALL, **({slot: name} if slot else {}), **settings})


@pytest.mark.parametrize(("slot", "name"), PARTS)
def test_flops_equal_those_of_pytorch(slot: str, name: str) -> None:
    """Real tensors and unfused attention, since PyTorch's counter has no formula for the fused kernel of CPUs."""
    config = described(slot, name, n_layers=1)
    for layer in config.layer_configs:
        if hasattr(layer.attention, "backend"):
            layer.attention.backend = "math"
    model = GPTModel(config)
    ids = torch.randint(61, (3, 24))
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).loss.backward()
    assert flops_per_token(described(slot, name, n_layers=1)) == counter.get_total_flops() / ids.numel()


def test_processes_that_shard_a_model_need_less_memory() -> None:
    """Except for activations, which belong to the rows of a process, and the cache."""
    whole = Estimate(1.0, 0.5, weights=64, gradients=64, optimizer=128, average=32, activations=50, cache=7)
    shard = whole.sharded(4)
    assert (shard.weights, shard.gradients, shard.optimizer, shard.average) == (16, 16, 32, 8)
    assert (shard.activations, shard.cache, shard.flops_per_token) == (50, 7, 1.0)


def test_flops_of_a_default_model_by_hand() -> None:
    """Six per matrix weight (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361), and those of attention scores."""
    config = described("pos", "none", tie_embeddings=False)
    model = GPTModel(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and n != "embedding.weight")
    attention = 2 * 2 * 24 * 32 * 2  # scores and their product with values, over all keys, in two layers
    assert flops_per_token(config) == 6 * matrices + 3 * attention


@pytest.mark.parametrize("context", [24, 64, 96])
@pytest.mark.parametrize("attention", ["mha", "gqa", "mla"])
def test_flops_of_windows_and_causality(attention: str, context: int) -> None:
    """A window reduces the FLOPs by its masked keys, even if whole blocks of keys are computed."""
    size = {"context_length": context, "n_layers": 1}
    full = described("attention", attention, **size)
    windowed = described("", "", attention={"name": attention, "window": 8}, **size)
    layer = full.layer_configs[0]
    per_key = 3 * layer.attention_class.score_flops(layer.attention, full.dims, layer.position_class)
    seen = {"full": (context + 1) / 2, "windowed": sum(min(t + 1, 8) for t in range(context)) / context}
    (of_full, causal), (of_windowed, windowed_causal) = (count_flops(c, (), NO_ADAPTERS) for c in (full, windowed))
    assert of_full - of_windowed == pytest.approx(per_key * (context - 8), abs=0.01)
    assert of_full - causal == pytest.approx(per_key * (context - seen["full"]))
    assert of_windowed - windowed_causal == pytest.approx(per_key * (8 - seen["windowed"]))


@pytest.mark.parametrize(
    "chosen",
    [
        {"pattern": "bigbird", "window": 5, "global_tokens": 3, "random_blocks": 1, "block": 4},
        {"pattern": "longformer", "window": 3, "dilation": 2, "global_tokens": 2, "block": 8},
        {"pattern": "strided", "window": 5, "stride": 2, "block": 4},
        {"pattern": "streaming", "window": 6, "global_tokens": 2, "block": 8},
        {"pattern": "chunked", "chunk": 10, "block": 8},
    ],
    ids=lambda chosen: chosen["pattern"],
)
@pytest.mark.parametrize("context", [22, 64])
def test_flops_of_patterns_are_those_of_visible_keys(chosen: dict, context: int) -> None:
    """Even if whole blocks of keys are computed."""
    size = {"context_length": context, "n_layers": 1}
    full, sparse = described("", "", **size), described("", "", attention={"name": "sparse", **chosen}, **size)
    layer = sparse.layer_configs[0]
    where = torch.arange(context)
    seen = pattern_of(layer.attention).visible(where[:, None], where).sum(1).double()
    per_key = 3 * layer.attention_class.score_flops(layer.attention, sparse.dims, layer.position_class)
    (of_full, causal), (of_sparse, of_seen) = (count_flops(c, (), NO_ADAPTERS) for c in (full, sparse))
    assert of_full - of_sparse == pytest.approx(per_key * (context - seen.max().item()), abs=0.01)
    assert causal - of_seen == pytest.approx(per_key * ((context + 1) / 2 - seen.mean().item()), abs=0.01)


@pytest.mark.parametrize("context", [64, 128])
def test_flops_of_a_delta_rule_by_hand(context: int) -> None:
    """The forward pass in chunks of C = 16 per head: matrix products and a triangular solve."""
    chunk, width, heads, chunks = 16, 8, 4, context // 16
    q, k, v = (torch.randn(1, heads, context, width) for _ in range(3))
    gates = -torch.rand(1, heads, context, 1), torch.rand(1, heads, context, 1)
    with FlopCounterMode(display=False) as counter:
        delta_rule(q, k, v, gates, None, chunk)
    square, tall = 2 * chunk * chunk * width, 2 * chunk * width * width
    solve = chunk * chunk * 2 * width
    assert counter.get_total_flops() == heads * chunks * (3 * square + 3 * tall + solve)


def test_flops_of_a_mixture_are_those_of_active_experts() -> None:
    one, two = (flops_per_token(described("", "", ffn={"name": "moe", "top_k": k, "n_experts": 8})) for k in (1, 2))
    more = flops_per_token(described("", "", ffn={"name": "moe", "top_k": 1, "n_experts": 16}))
    hidden = GPTModel(described("", "", ffn={"name": "moe"})).blocks[0].ffn.up.shape[1]
    assert two - one == 2 * 6 * 3 * 32 * hidden  # layers, operations, matrices of an expert
    assert more - one == 2 * 6 * 32 * 8  # eight more rows of each router


@pytest.mark.parametrize(("slot", "name", "layers"), [*((slot, name, 1) for slot, name in PARTS), ("", "", 3)])
def test_activations_equal_the_saved_tensors(slot: str, name: str, layers: int) -> None:
    config = described(slot, name, n_layers=layers)
    model = GPTModel(config)
    ids = torch.randint(61, (3, 24))
    with saved_tensors() as kept:
        model(ids, ids)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    measured = sum(count for storage, count in held.items() if storage not in weights)
    assert activation_bytes(config, rows(3)) == pytest.approx(measured, rel=0.01)


class Peak(TorchDispatchMode):
    """Tracks the live bytes of all tensors created under it, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.held:
                self.held.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def freed(self, storage: int, count: int) -> None:
        self.held.remove(storage)
        self.now -= count


@pytest.mark.parametrize("settings", [{}, {"attention": "mla", "dropout": 0.1}], ids=str)
def test_recomputation_reduces_the_memory_as_estimated(settings: dict[str, Any]) -> None:
    config = GPTConfig(**{**SMALL, **settings, "n_layers": 6})
    held, estimated = [], []
    for every in (0, 3, 2, 1):
        model, ids = GPTModel(config), torch.randint(61, (16, 24))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        model.checkpoint_activations(every)
        with Peak() as peak:
            model(ids, ids).loss.backward()
        held.append(peak.peak)
        estimated.append(activation_bytes(config, rows(16, activation_checkpointing=every)))
    assert held == sorted(held, reverse=True) and estimated == sorted(estimated, reverse=True)
    assert held[-1] < 0.35 * held[0]
    for one, other in zip(held, estimated, strict=True):
        assert 0.7 < other / one < 1.2


@pytest.mark.parametrize("optim", entries("optim"))
@pytest.mark.parametrize("ffn", ["mlp", "moe"])
def test_the_optimizer_state_has_the_estimated_size(optim: str, ffn: str) -> None:
    config = described("ffn", ffn, n_layers=1)
    model = GPTModel(config)
    optimizer = build_optimizer(optim, model)
    ids = torch.randint(61, (3, 24))
    model(ids, ids).loss.backward()
    optimizer.step(1.0)
    needs = estimate(config, optim, rows(3))
    assert needs.optimizer == sum(tensor.nbytes for tensor in optimizer.state().values())
    assert needs.weights == needs.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def test_an_average_of_the_weights_has_their_size() -> None:
    config = described("", "")
    without, with_average = (estimate(config, "adamw", rows(3, ema_decay=decay)) for decay in (None, 0.9))
    assert with_average.training_bytes - without.training_bytes == with_average.weights
    assert "average" in with_average.table() and "average" not in without.table()


def test_a_huge_model_is_estimated_without_allocating_it() -> None:
    config = GPTConfig(
        vocab_size=50257, d_model=24576, n_heads=192, n_layers=1, context_length=2048, tie_embeddings=False
    )
    needs = estimate(config, "adamw", rows(1))
    assert needs.weights > 30 * 2**30
    assert needs.optimizer == pytest.approx(2 * needs.weights, rel=1e-6)
    assert "GiB" in needs.table()


def test_large_batches_are_estimated_as_fast_as_small_ones() -> None:
    """Their loss has thousands or millions of chunks."""
    few, many = (activation_bytes(GPTConfig(**SMALL), rows(count)) for count in (2**17, 2**40))
    assert many == pytest.approx(2**23 * few, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        ({}, 2**62),
        ({"context_length": 2**31}, 2**40),
        ({"d_model": 2**24, "vocab_size": 2**31, "context_length": 2**31}, 2**20),
    ],
)
def test_sizes_beyond_any_tensor_get_one_sentence(model: dict[str, Any], batch: int) -> None:
    with pytest.raises(ConfigError, match="is beyond the memory of this machine; make its sizes smaller") as caught:
        estimate(GPTConfig(**{**SMALL, "n_layers": 1, **model}), "adamw", rows(batch))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**30, "3.0 GiB"), (2**50, "1024.0 TiB")],
)
def test_sizes(count: int, expected: str) -> None:
    assert format_bytes(count) == expected


def test_a_dry_run_prints_the_estimate_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(config(folder, dry_run=True))
    printed = capsys.readouterr().out
    assert result.table is not None
    assert result.table in printed
    for expected in ("parameters: 10,", "weights", "gradients", "optimizer", "activations", "FLOPs per token"):
        assert expected in printed
    assert not (folder / "runs").exists()


def test_a_dry_run_refuses_a_training_beyond_memory(folder: Path) -> None:
    huge = {"d_model": 2**17, "n_layers": 2, "context_length": 512}
    with pytest.raises(ConfigError, match=r"activations .*available: try model_size=nano") as caught:
        run(config(folder, huge, dry_run=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "accumulation", "every", "context", "expected"),
    [
        (12, 1, 0, 256, "trainer.gradient_accumulation=2"),
        (12, 4, 0, 256, "trainer.gradient_accumulation=12"),
        (4, 4, 0, 256, "trainer.activation_checkpointing=1"),
        (4, 4, 2, 256, "trainer.activation_checkpointing=1"),
        (4, 4, 1, 256, "model_size.context_length=128"),
        (4, 4, 1, 64, "model_size=nano"),
    ],
)
def test_suggested_settings(count: int, accumulation: int, every: int, context: int, expected: str) -> None:
    trainer = rows(count, gradient_accumulation=accumulation, activation_checkpointing=every)
    assert suggest_smaller(described("", "", context_length=context), trainer) == expected


def test_suggested_settings_fit_into_memory() -> None:
    model = described("", "")
    trainer = TrainerConfig(batch_size=16)
    needs = estimate(model, "adamw", rows(16))
    for divisor in (2, 4, 8, 16):
        available = replace(needs, activations=activation_bytes(model, rows(16 // divisor))).training_bytes
        assert (
            suggest_smaller(model, trainer, needs, available * 101 // 100) == f"trainer.gradient_accumulation={divisor}"
        )
    least = rows(16, gradient_accumulation=16, activation_checkpointing=1)
    available = replace(needs, activations=activation_bytes(model, least)).training_bytes
    expected = "trainer.gradient_accumulation=16 trainer.activation_checkpointing=1"
    assert suggest_smaller(model, trainer, needs, available * 101 // 100) == expected
    assert suggest_smaller(model, trainer, needs, needs.weights) == "model_size=nano"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_is_explained_and_the_checkpoint_is_kept(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def failing(self: Trainer) -> None:
        if self.progress.step == 6:
            raise error
        update(self)

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(
        ConfigError, match=r"out of memory after step 6: .*weights .* try trainer.gradient_accumulation=2"
    ):
        run(config(folder))
    monkeypatch.undo()
    (directory,) = (folder / "runs").glob("*-gpt")
    assert load_checkpoint(directory / "checkpoints" / "latest").meta["step"] == 4


def test_another_error_is_not_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Trainer) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "update", failing)
    with pytest.raises(RuntimeError, match="a bug"):
        run(config(folder))


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="this system does not tell a process's memory")
def test_a_process_that_runs_out_of_memory(folder: Path) -> None:
    """The system refuses further memory during a training."""
    settings = config(folder, {"d_model": 64}, batch_size=2048, compile=False).to_dict()
    process = processes().Process(target=run_with_little_memory, args=(settings,))
    process.start()
    process.join()
    assert process.exitcode == EXPLAINED


def test_weights_beyond_memory_are_refused_before_allocation(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights alone take [\d.]+ TiB, and .*: take a smaller model_size"):
        run(config(folder, {"d_model": 2**21}))
    assert not (folder / "runs").exists()
