"""The training loss: the mean over targets that are not ignored, independent of chunks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import modular_gpt.model.loss
from modular_gpt import ConfigError, GPTConfig, GPTModel, LossConfig, LossOutput
from modular_gpt.model.loss import PLAIN
from tests.components.cases import MODEL
from tests.components.laws import build, text

CONFIG = GPTConfig(**{**MODEL, "vocab_size": 211, "head_bias": True, "logit_softcap": 5.0, "logit_scale": 0.5})

BOTH = LossConfig(label_smoothing=0.2, z_loss=0.03)


def pair(rows: int = 5) -> tuple[Tensor, Tensor]:
    ids = text(CONFIG, rows=rows, tokens=21)
    return ids[:, :-1], ids[:, 1:].clone()


def loss_and_gradients(
    model: GPTModel, ids: Tensor, targets: Tensor, settings: LossConfig = PLAIN
) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = model(ids, targets, loss=settings).loss
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("settings", [PLAIN, BOTH], ids=str)
@pytest.mark.parametrize("rows_at_once", [1, 7, 50, 99, 100, 101])
def test_chunks_change_neither_loss_nor_gradients(
    rows_at_once: int, settings: LossConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (ids, targets) = build(CONFIG).train(), pair()
    targets[2, 3:9] = -100
    expected, gradients = loss_and_gradients(model, ids, targets, settings)
    monkeypatch.setattr(modular_gpt.model.loss, "_CHUNK", rows_at_once * CONFIG.vocab_size)
    got, chunked = loss_and_gradients(model, ids, targets, settings)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for got, expected in zip(chunked, gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest created tensor, except gradients of parameters."""

    def __init__(self, ignored: set[torch.Size]) -> None:
        super().__init__()
        self.ignored, self.most = ignored, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.shape not in self.ignored:
                self.most = max(self.most, tensor.numel())
        return out


@pytest.mark.parametrize("settings", [PLAIN, BOTH], ids=str)
@pytest.mark.parametrize("chunked", [True, False])
def test_logits_of_a_long_batch_are_never_all_in_memory(
    chunked: bool, settings: LossConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GPTConfig(**{**MODEL, "vocab_size": 2003})
    model, ids = GPTModel(config).train(), text(config, rows=16, tokens=21)
    if chunked:
        monkeypatch.setattr(modular_gpt.model.loss, "_CHUNK", 40 * config.vocab_size)
    weights = {shape for parameter in model.parameters() for shape in (parameter.shape, parameter.shape[::-1])}
    with Largest(weights) as largest:
        model(ids[:, :-1], ids[:, 1:], loss=settings).loss.backward()
    everything = 16 * 20 * config.vocab_size
    assert largest.most == (40 * config.vocab_size if chunked else everything)


@torch.no_grad()
def test_ignored_targets_do_not_count() -> None:
    model, (ids, targets) = build(CONFIG), pair()
    targets[:, :7] = -100
    kept = targets != -100
    expected = F.cross_entropy(model(ids)[kept], targets[kept])
    torch.testing.assert_close(model(ids, targets).loss, expected)


def test_no_target_at_all_is_a_loss_of_zero() -> None:
    model, (ids, targets) = build(CONFIG).train(), pair()
    loss, gradients = loss_and_gradients(model, ids, torch.full_like(targets, -100), BOTH)
    assert loss == 0 and all(gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_padding_and_targets() -> None:
    """The loss of left-padded rows equals that of the single rows."""
    model, (ids, targets) = build(CONFIG), pair(rows=3)
    padding = torch.tensor([0, 5, 11])
    total = sum(
        model(ids[i : i + 1, pad:], targets[i : i + 1, pad:]).loss * (20 - pad) for i, pad in enumerate([0, 5, 11])
    )
    for row, pad in enumerate(padding.tolist()):
        targets[row, :pad] = -100
    torch.testing.assert_close(model(ids, targets, padding=padding).loss, total / (20 + 15 + 9))


def test_the_terms_of_the_loss() -> None:
    config = GPTConfig(**{**MODEL, "ffn": {"name": "moe", "balance_weight": 0.5, "z_weight": 0.1}, "n_layers": 3})
    model, ids = build(config).train(), text(config)
    output = model(ids[:, :-1], ids[:, 1:])
    assert isinstance(output, LossOutput) and list(output.losses) == ["cross_entropy", "load_balancing", "router_z"]
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    torch.testing.assert_close(
        output.losses["cross_entropy"], F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    )
    assert output.losses["load_balancing"] > 3 * 0.5 * 0.9  # one term per layer, each about one when balanced
    assert list(model.eval()(ids[:, :-1], ids[:, 1:]).losses) == ["cross_entropy"]


def test_the_loss_is_float32_in_a_half_precision_model() -> None:
    model, (ids, targets) = build(CONFIG, std=0.1), pair()
    expected = model(ids, targets).loss
    got = model.bfloat16()(ids, targets).loss
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0)


def gradients_of(loss: Tensor, model: GPTModel) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


@pytest.mark.parametrize("ignored", [0, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weight", [0.0, 1e-4, 0.5])
def test_label_smoothing_and_z_loss(smoothing: float, weight: float, ignored: int) -> None:
    """Loss and gradients equal PyTorch's smoothing and the square of logsumexp."""
    model, (ids, targets) = build(CONFIG).train(), pair()
    targets[:, :ignored] = -100
    output = model(ids, targets, loss=LossConfig(smoothing, weight))
    logits, kept = model(ids).flatten(0, 1), targets.flatten() != -100
    smooth = F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing)
    z_loss = weight * logits[kept].logsumexp(-1).square().mean()
    torch.testing.assert_close(output.loss, smooth + z_loss)
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    torch.testing.assert_close(output.losses["cross_entropy"], F.cross_entropy(logits, targets.flatten()))
    if smoothing:
        torch.testing.assert_close(output.losses["label_smoothing"] + output.losses["cross_entropy"], smooth)
    if weight:
        torch.testing.assert_close(output.losses["z_loss"], z_loss)
    assert len(output.losses) == 1 + bool(smoothing) + bool(weight)
    for got, expected in zip(gradients_of(output.loss, model), gradients_of(smooth + z_loss, model), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}], ids=str)
def test_invalid_terms_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"loss.{next(iter(settings))} must "):
        LossConfig(**settings)
