"""Two-dimensional parameters that are not matrices are excluded from initialisation, weight decay and Muon."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from modular_gpt import GPTModel
from modular_gpt.core.contracts import Dims, FeedForward, Norm
from modular_gpt.core.registry import ComponentConfig, _entries
from modular_gpt.nn.matrices import is_matrix, mark_no_matrix, no_matrices
from modular_gpt.optim import build_optimizer
from modular_gpt.optim.muon import OrthogonalMomentum

HEADS, WIDTH, VALUE = 2, 4, 0.5
NONE = ("mix.weight", "heads", "norm.weight")


class HeadNorm(Norm):
    """A norm whose weight is (H, N)."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig(), WIDTH, False)
        self.weight = nn.Parameter(torch.empty(HEADS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (WIDTH,)) * self.weight

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, VALUE)


@pytest.fixture
def model() -> GPTModel:
    """Each ffn has a depthwise convolution over tokens, and weights per head as a norm and as a parameter."""

    class Mixing(FeedForward, name="mixing"):
        @dataclass
        class Config(ComponentConfig):
            """No settings."""

        def __init__(self, config: ComponentConfig, dims: Dims) -> None:
            super().__init__(config, dims)
            self.mix = nn.Conv1d(dims.d_model, dims.d_model, 3, groups=dims.d_model, padding=2, bias=False)
            self.mix.reset_parameters = lambda: nn.init.constant_(self.mix.weight, VALUE)
            self.heads = nn.Parameter(torch.empty(HEADS, WIDTH))
            self.norm = HeadNorm()
            self.down = nn.Linear(dims.d_model, dims.d_model)
            mark_no_matrix(self.mix, "weight")
            mark_no_matrix(self, "heads")

        def reset_parameters(self) -> None:
            nn.init.constant_(self.heads, VALUE)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            x = self.mix(x.mT)[..., : x.shape[1]].mT
            heads = self.norm(x.unflatten(-1, (HEADS, WIDTH))) * self.heads
            return self.down(heads.flatten(2)), {}

    try:
        return GPTModel(vocab_size=11, d_model=HEADS * WIDTH, n_heads=2, n_layers=2, context_length=8, ffn="mixing")
    finally:
        del _entries["ffn"]["mixing"]


def marked(model: GPTModel) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name.partition("ffn.")[2] in NONE}


def test_initialisation_keeps_the_values_of_their_module(model: GPTModel) -> None:
    assert len(marked(model)) == 2 * len(NONE)
    assert all(bool((parameter == VALUE).all()) for parameter in marked(model).values())
    assert all(parameter.std() > 0 for name, parameter in model.named_parameters() if name.endswith("down.weight"))


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_they_have_no_weight_decay_and_are_not_optimised_by_muon(model: GPTModel, optim: str) -> None:
    optimizer = build_optimizer({"name": optim, "weight_decay": 0.3}, model)
    decays = {optimizer.names[p]: group["weight_decay"] for group in optimizer.groups() for p in group["params"]}
    assert {decays[name] for name in marked(model)} == {0.0}
    assert {decays[name] for name in decays if name.endswith("down.weight")} == {0.3}
    if optim == "muon":
        (muon,) = (one for one in optimizer.optimizers if isinstance(one, OrthogonalMomentum))
        taken = {optimizer.names[p] for group in muon.param_groups for p in group["params"]}
        assert not taken & set(marked(model))
        assert {name for name in decays if name.endswith("down.weight")} <= taken


def test_several_marks_are_combined() -> None:
    module = nn.Module()
    for name in "abc":
        setattr(module, name, nn.Parameter(torch.zeros(2, 2)))
    mark_no_matrix(module, "a")
    mark_no_matrix(module, "b")
    assert no_matrices(module) == ("a", "b")
    assert [is_matrix(module, name) for name in "abc"] == [False, False, True]
