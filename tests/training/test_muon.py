"""Muon equals its published update, and PyTorch's, which handles one matrix at a time."""

import pytest
import torch
from torch import Tensor, nn

from modular_gpt import GPTModel
from modular_gpt.core.errors import ConfigError
from modular_gpt.optim import build_optimizer
from modular_gpt.optim.muon import OrthogonalMomentum, newton_schulz

SHAPES = [(16, 16), (64, 16), (16, 64), (16, 16), (8, 24)]
MODEL = {"vocab_size": 20, "d_model": 16, "n_heads": 2, "n_layers": 2, "context_length": 8}


def matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 5) -> None:
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scaling", ["original", "match_rms_adamw"])
def test_it_equals_pytorch(scaling: str, nesterov: bool) -> None:
    found, expected = matrices(0), matrices(0)
    settings = {"weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    muon = OrthogonalMomentum(found, learning_rate=0.05, scaling=scaling, **settings)
    reference = torch.optim.Muon(expected, lr=0.05, adjust_lr_fn=scaling, **settings)
    train(muon, found)
    train(reference, expected)
    for start, a, b in zip(matrices(0), found, expected, strict=True):
        moved = (b - start).norm()
        assert (a - b).norm() < 0.01 * moved  # the iteration is in bf16
        assert muon.state[a].keys() == reference.state[b].keys()
        torch.testing.assert_close(muon.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"])


def test_the_iteration_changes_only_singular_values() -> None:
    """https://kellerjordan.github.io/posts/muon/: each step maps s to a s + b s^3 + c s^5."""
    x = torch.randn(3, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(newton_schulz(x, 5), u @ torch.diag_embed(s) @ v)
    assert s.min() > 0.6 and s.max() < 1.3


def test_the_published_update() -> None:
    """With momentum 0 and the original scaling: a step of learning_rate sqrt(rows / columns) along U V'."""
    weight = nn.Parameter(torch.zeros(64, 16))
    weight.grad = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))[
        0
    ]  # all singular values are equal
    muon = OrthogonalMomentum([weight], 0.02, 0.0, momentum=0.0, nesterov=True, ns_steps=5, scaling="original")
    muon.step()
    direction = -weight.detach() / (0.02 * 2)
    assert torch.cosine_similarity(direction.flatten(), weight.grad.flatten(), dim=0) > 0.9999
    assert torch.linalg.svdvals(direction).min() > 0.6 and torch.linalg.svdvals(direction).max() < 1.3


def test_a_matrix_without_a_gradient_is_not_updated() -> None:
    parameters = matrices(1)
    muon = OrthogonalMomentum(parameters, 0.05, 0.1, momentum=0.9, nesterov=True, ns_steps=5, scaling="original")
    parameters[0].grad = gradients(0)[0]
    muon.step()
    same = [torch.equal(a, b) for a, b in zip(parameters, matrices(1), strict=True)]
    assert same == [False, True, True, True, True]
    assert list(muon.state) == [parameters[0]]


@pytest.mark.parametrize(("head", "by_muon"), [("muon", True), ("adamw", False)])
def test_the_optimizer_of_the_head(head: str, by_muon: bool) -> None:
    model = GPTModel(**MODEL, tie_embeddings=False)
    muon, adamw = build_optimizer({"name": "muon", "head": head}, model).optimizers
    assert isinstance(muon, OrthogonalMomentum) and isinstance(adamw, torch.optim.AdamW)
    taken = {p for group in muon.param_groups for p in group["params"]}
    assert (model.head.weight in taken) == by_muon
    linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear)} - {model.head.weight}
    assert taken - {model.head.weight} == linear
    rest = {p for group in adamw.param_groups for p in group["params"]}
    assert not rest & taken and rest | taken == set(model.parameters())


@pytest.mark.parametrize(("matrices", "expected"), [(False, torch.optim.AdamW), (True, OrthogonalMomentum)])
def test_frozen_parameters_need_no_optimizer(matrices: bool, expected: type[torch.optim.Optimizer]) -> None:
    model = GPTModel(**MODEL, bias=False)
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and name.startswith("blocks")
        parameter.requires_grad_(matrix == matrices)
    assert [type(optimizer) for optimizer in build_optimizer("muon", model).optimizers] == [expected]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scaling": "rms"}, "optim.scaling: no choice 'rms'; there are: match_rms_adamw, original"),
        ({"head": "adam"}, "optim.head: no choice 'adam'; did you mean 'adamw'?"),
    ],
)
def test_mistakes(setting: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_optimizer({"name": "muon", **setting}, GPTModel(**MODEL))
    assert message in str(error.value)
