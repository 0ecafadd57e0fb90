"""The block, embeddings and head equal a few naive lines."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.contracts import Positions
from modular_gpt.model.config import TOPOLOGIES, BlockConfig
from tests.components.cases import MODEL
from tests.components.laws import build, close, text


def config(**changes: object) -> GPTConfig:
    return GPTConfig(**{**MODEL, "pos": "learned", **changes})


def naive_block(block: nn.Module, x: Tensor, pos: Positions, layer: BlockConfig) -> Tensor:
    """The formulas of the topologies."""
    m = layer.residual_multiplier
    a, b, c, d = layer.residual_weights or (1, 1, 1, 1)

    def attend(y: Tensor) -> Tensor:
        return block.attention(y, pos)

    def ffn(y: Tensor) -> Tensor:
        return block.ffn(y)[0]

    match layer.topology:
        case "pre":
            x = a * x + b * m * attend(block.attention_norm(x))
            return c * x + d * m * ffn(block.ffn_norm(x))
        case "post":
            x = block.attention_post_norm(a * x + b * m * attend(x))
            return block.ffn_post_norm(c * x + d * m * ffn(x))
        case "sandwich":
            x = a * x + b * m * block.attention_post_norm(attend(block.attention_norm(x)))
            return c * x + d * m * block.ffn_post_norm(ffn(block.ffn_norm(x)))
        case "post_residual":
            x = a * x + b * m * block.attention_post_norm(attend(x))
            return c * x + d * m * block.ffn_post_norm(ffn(x))
        case "norm_residual":
            x = block.attention_norm(x)
            x = block.ffn_norm(a * x + b * m * attend(x))
            return c * x + d * m * ffn(x)
        case "parallel_two_norms":
            return x + m * attend(block.attention_norm(x)) + m * ffn(block.ffn_norm(x))
        case _:
            normed = block.attention_norm(x)
            return x + m * attend(normed) + m * ffn(normed)


def naive_model(model: GPTModel, ids: Tensor) -> Tensor:
    made = model.config
    pos = Positions(0, ids.shape[1], None, ids.device)
    x = torch.stack([torch.stack([model.embedding.weight[i] * made.embed_scale for i in row]) for row in ids])
    x = x + model.positions[0].table.weight[: ids.shape[1]]
    x = model.embedding_norm(x) if made.embed_norm else x
    for block, layer in zip(model.blocks, made.layer_configs, strict=True):
        x = naive_block(block, x, pos, layer)
    x = model.final_norm(x) if model.final_norm is not None else x
    weight = model.embedding.weight if made.tie_embeddings else model.head.weight
    logits = x @ weight.T + (model.head_bias if made.head_bias else 0)
    logits = logits * made.logit_scale
    return made.logit_softcap * torch.tanh(logits / made.logit_softcap) if made.logit_softcap else logits


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual_multiplier": 0.3, "embed_scale": 5.0},
        {"residual_multiplier": 0.3, "residual_weights": [2.0, 0.5, 0.7, 3]},
        {"embed_norm": True, "final_norm": False},
        {"final_norm": True, "tie_embeddings": False, "head_bias": True, "logit_scale": 0.2},
        {"logit_softcap": 2.0, "logit_scale": 3.0, "head_bias": True},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
@torch.no_grad()
def test_model(topology: str, changes: dict) -> None:
    if "residual_weights" in changes and not TOPOLOGIES[topology].weighted:
        with pytest.raises(ConfigError, match="adds attention and ffn at once"):
            config(topology=topology, **changes)
        return
    made = config(topology=topology, **changes)
    model, ids = build(made), text(made)
    close(model(ids), naive_model(model, ids), 1e-5)


@torch.no_grad()
def test_layers_may_have_different_blocks() -> None:
    variants = {topology: {"block": topology} for topology in TOPOLOGIES}
    variants["weak"] = {"block": {"residual_multiplier": 0.2}, "ffn": "swiglu"}
    made = config(n_layers=len(variants), residual_multiplier=0.7, layers={"variants": variants, "prefix": [*variants]})
    model, ids = build(made), text(made)
    close(model(ids), naive_model(model, ids), 1e-5)
    assert [layer.topology for layer in made.layer_configs] == [*TOPOLOGIES, "pre"]
    assert [layer.residual_multiplier for layer in made.layer_configs] == [0.7] * len(TOPOLOGIES) + [0.2]
    assert GPTConfig.from_dict(made.to_dict()) == made
    weighted = config(
        layers={"variants": {"heavy": {"block": {"residual_weights": [2, 1, 1, 1]}}}, "prefix": ["heavy"]}
    )
    assert [layer.residual_weights for layer in weighted.layer_configs][:2] == [[2.0, 1.0, 1.0, 1.0], None]
    same = config(layers={"variants": {"all": {"block": {"topology": "sandwich"}}}, "cycle": ["all"]})
    assert build(same).state_dict().keys() == build(config(topology="sandwich")).state_dict().keys()


@pytest.mark.parametrize(("topology", "norms"), [("pre", 2), ("post", 2), ("sandwich", 4), ("post_residual", 2),
                                                 ("norm_residual", 2), ("parallel", 1),
                                                 ("parallel_two_norms", 2)])  # fmt: skip
def test_norms_of_a_block(topology: str, norms: int) -> None:
    block = GPTModel(config(topology=topology)).blocks[0]
    assert sum(isinstance(child, nn.LayerNorm) or "norm" in name for name, child in block.named_children()) == norms


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_only_post_norm_has_no_final_norm(topology: str) -> None:
    assert (GPTModel(config(topology=topology)).final_norm is None) == (topology == "post")
    assert GPTModel(config(topology=topology, final_norm=True)).final_norm is not None
    assert GPTModel(config(topology=topology, final_norm=False)).final_norm is None


def test_layers_have_separate_weights_and_share_position_modules_of_equal_settings() -> None:
    model = GPTModel(
        config(pos="rope", layers={"variants": {"none": {"pos": "none"}}, "cycle": ["none", "base"]}, n_layers=4)
    )
    assert len({id(block.attention.query) for block in model.blocks}) == 4
    assert [type(block.attention.position).__name__ for block in model.blocks] == ["NoPosition", "RoPE"] * 2
    assert len(model.positions) == 2


def test_nothing_is_saved_twice() -> None:
    """Neither a tied head nor a position table shared by all layers is saved twice."""
    for tied in (True, False):
        state = GPTModel(config(tie_embeddings=tied)).state_dict()
        places = [tensor.data_ptr() for tensor in state.values()]
        assert len(places) == len(set(places)) and ("head.weight" in state) != tied
        assert [name for name in state if "position" in name] == ["positions.0.table.weight"]
    assert not [name for name in GPTModel(config(pos="rope")).state_dict() if "position" in name]


def test_a_tied_embedding_has_gradients_of_input_and_output() -> None:
    made = config()
    model, ids = build(made).train(), text(made)
    model(ids[:, :-1], ids[:, 1:]).loss.backward()
    unseen = [token for token in range(made.vocab_size) if token not in ids]
    model2 = build(config(tie_embeddings=False)).train()
    model2(ids[:, :-1], ids[:, 1:]).loss.backward()
    assert unseen and model.embedding.weight.grad[unseen].abs().sum() > 0
    assert model2.embedding.weight.grad[unseen].abs().sum() == 0 and model2.head.weight.grad[unseen].abs().sum() > 0


def dropouts(model: GPTModel, ids: Tensor) -> list[tuple[float, bool]]:
    """(p, training) of every dropout call of one pass in order, by patching the functions."""
    seen: list[tuple[float, bool]] = []
    plain, fused = F.dropout, F.scaled_dot_product_attention

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        seen.append((p, training))
        return plain(x, p, training, inplace)

    def attention(*args: object, dropout_p: float = 0.0, **more: object) -> Tensor:
        seen.append((dropout_p, dropout_p > 0))
        return fused(*args, dropout_p=dropout_p, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "dropout", dropout)
        patch.setattr(F, "scaled_dot_product_attention", attention)
        model(ids)
    return seen


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_dropout_after_embeddings_attention_and_ffn_and_of_weights(topology: str) -> None:
    made = config(topology=topology, dropout=0.1, attention={"name": "mha", "dropout": 0.4})
    model, ids = GPTModel(made).train(), text(made)
    assert dropouts(model, ids) == [(0.1, True), *[(0.4, True), (0.1, True), (0.1, True)] * made.n_layers]
    assert not any(training for _, training in dropouts(model.eval(), ids))
    inherited = GPTModel(config(dropout=0.2)).train()
    assert set(dropouts(inherited, ids)) == {(0.2, True)}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_dropout_drops_a_fraction_and_keeps_the_mean(topology: str) -> None:
    """Each of the three locations separately, with the others disabled."""
    made = config(topology=topology, dropout=0.9, attention={"name": "mha", "dropout": 0.0})
    model, ids = build(made).train(), text(made)
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    model(ids)
    assert len(seen) == 1 + 2 * made.n_layers
    for before, after in seen:
        kept = after != 0
        assert 0.05 < kept.float().mean() < 0.15
        torch.testing.assert_close(after[kept], before[kept] / 0.1, rtol=1e-4, atol=1e-5)


def test_dropout_is_random_in_training_and_off_in_evaluation() -> None:
    made = config(dropout=0.5)
    model, ids = build(made), text(made)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    torch.manual_seed(3)
    first = model(ids)
    torch.manual_seed(3)
    assert torch.equal(model(ids), first)


def test_the_initial_loss_of_gpt2_is_that_of_a_uniform_distribution() -> None:
    made = config(vocab_size=500)
    model, ids = GPTModel(made), text(made, rows=16)
    assert model(ids[:, :-1], ids[:, 1:]).loss.item() == pytest.approx(math.log(500), abs=0.1)
