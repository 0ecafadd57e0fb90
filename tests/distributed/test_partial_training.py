"""Two processes equal one with frozen parameters, separate learning rates, loss terms, or adapters."""

from pathlib import Path

import pytest
import torch

from modular_gpt.checkpoint import load_checkpoint
from tests.distributed.cases import refusal, steps
from tests.distributed.pair import Pair
from tests.distributed.test_equivalence import EXACT, assert_equal, difference, plain
from tests.training.small import config, run


def test_frozen_parameters_and_separate_learning_rates(pair: Pair, folder: Path) -> None:
    optim = {"name": "adamw", "learning_rate_scale": {"blocks.1.*": 0.5}}
    assert_equal(pair, plain(folder, optim=optim, frozen=["blocks.0.*"], ema_decay=0.9), averaged=True)


def test_additional_loss_terms(pair: Pair, folder: Path) -> None:
    assert_equal(pair, plain(folder, label_smoothing=0.1, z_loss=0.01, activation_checkpointing=2))


def test_adapters(pair: Pair, folder: Path) -> None:
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    base = run(config(folder, {"vocab_size": 259}, max_steps=20, sample_tokens=0)).directory
    settings = plain(folder, init_from=str(base), lora={"rank": 4, "targets": ["query", "*.ffn.*"]}, ema_decay=0.5)
    losses, norms, weights = steps({**settings, "parallel": "none"}, 10, None, True)
    for name in ("ddp", "fsdp"):
        both = pair(steps, {**settings, "parallel": name}, 10, None, True)
        assert difference(both[0][0], losses) < EXACT and difference(both[0][1], norms) < EXACT
        for key, weight in both[0][2].items():
            torch.testing.assert_close(weight, weights[key], atol=1e-4, rtol=0)
    before = load_checkpoint(base).model.state_dict()
    changed = {name for name in weights if name in before and not torch.equal(weights[name], before[name])}
    assert not changed and any(".lora_B." in name and weights[name].any() for name in weights)
    assert pair(refusal, {**settings, "parallel": "tensor"})[0].startswith("lora.rank needs full matrices")
