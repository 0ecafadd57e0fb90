"""Changing components of a trained model: compatible weights are kept, and a table reports every tensor."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt import ConfigError, GPTModel
from modular_gpt.model.surgery import CONVERTED, LOADED, NEW, SKIPPED
from modular_gpt.pretrained import text_loss, transplant, with_components
from tests.reference.cases import ids
from tests.reference.conftest import TOLERANCE, difference

SIZES = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 3, "context_length": 32}
SIZES |= {"pos": "learned", "init_std": 0.3}
LLAMA = {**SIZES, "bias": False, "ffn": "swiglu", "norm": "rmsnorm"}


def trained(**settings: Any) -> GPTModel:
    """A model as after training: no bias is zero, no norm is one, no weight is small."""
    model = GPTModel(**{**SIZES, **settings}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3 if name.endswith("weight") else 0.5)
    return model


@torch.no_grad()
def apart(one: GPTModel, other: GPTModel) -> float:
    tokens = ids(61)
    return difference(one(tokens), other(tokens))


def changed(source: GPTModel, **changes: Any) -> tuple[GPTModel, dict[str, set[str]], str]:
    """The new model, the names by status, and the printed table."""
    model, report = transplant(source, with_components(source.config, changes))
    return (
        model,
        {s: {r.name for r in report.rows if r.status == s} for s in (LOADED, CONVERTED, NEW, SKIPPED)},
        str(report),
    )


SOURCES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {**LLAMA, "attention": {"name": "gqa", "n_kv_heads": 2}, "pos": "rope"},
    "many parts": {
        "attention": {"name": "mha", "sinks": True, "qk_norm": "layernorm"},
        "ffn": {"name": "moe", "n_experts": 4, "balance": "bias", "shared_experts": 1},
        "topology": "sandwich",
        "embed_norm": True,
        "head_bias": True,
        "tie_embeddings": False,
        "pos": "alibi",
        "layers": {"variants": {"x": {"attention": "linear", "pos": "rope"}}, "cycle": ["base", "x"]},
    },
    "latent": {"attention": {"name": "mla", "q_lora_rank": 12}, "pos": "rope", "norm": "scalenorm"},
}


@pytest.mark.parametrize("name", SOURCES)
def test_an_unchanged_config_is_exact(name: str) -> None:
    source = trained(**SOURCES[name])
    model, names, _ = changed(source)
    assert model.state_dict().keys() == source.state_dict().keys()
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert names[LOADED] == set(source.state_dict()) and not names[NEW] | names[CONVERTED] | names[SKIPPED]
    assert apart(model, source) == 0


def test_the_source_is_unchanged() -> None:
    source = trained()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    model, _, _ = changed(source, attention="mla")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_dtype_and_mode_are_kept() -> None:
    source = trained().bfloat16().train()
    model, _, _ = changed(source, attention="gqa")
    assert model.training and model.embedding.weight.dtype == torch.bfloat16


# --- attention


@pytest.mark.parametrize("name", ["gqa", "mqa"])
def test_shared_heads_are_means(name: str) -> None:
    """https://arxiv.org/abs/2305.13245, section 2.1, compared head by head."""
    source = trained()
    model, names, table = changed(source, attention=name)
    count = model.config.attention.n_kv_heads
    for old, new in zip(source.blocks, model.blocks, strict=True):
        for projection in ("key", "value"):
            for tensor in ("weight", "bias"):
                heads = getattr(getattr(old.attention, projection), tensor).chunk(4)
                group = 4 // count
                means = [sum(heads[i * group : (i + 1) * group]) / group for i in range(count)]
                torch.testing.assert_close(getattr(getattr(new.attention, projection), tensor), torch.cat(means))
        assert torch.equal(old.attention.query.weight, new.attention.query.weight)
    assert "blocks.1.attention.value.bias" in names[CONVERTED] and "blocks.1.attention.out.weight" in names[LOADED]
    assert f"means of {4 // count} heads" in table and not names[NEW] | names[SKIPPED]


def test_means_of_equal_heads_are_exact() -> None:
    """Repeating shared heads for each query head and averaging them again does not change the logits."""
    source = trained(attention={"name": "gqa", "n_kv_heads": 2})
    wide, _, table = changed(source, attention="mha")
    assert "each head 2 times" in table
    assert apart(wide, source) < TOLERANCE
    back, _, _ = changed(wide, attention={"name": "gqa", "n_kv_heads": 2})
    assert apart(back, source) < TOLERANCE


def test_a_factor_on_scores_moves_into_the_queries() -> None:
    source = trained()
    model, _, table = changed(source, attention={"scale": 1.0})
    assert apart(model, source) < TOLERANCE
    assert "times 0.3536" in table


def test_sinks_and_norms_of_heads_are_kept() -> None:
    source = trained(attention={"name": "mha", "sinks": True, "qk_norm": "rmsnorm"})
    model, names, _ = changed(source, attention={"n_kv_heads": 2})
    assert torch.equal(model.blocks[2].attention.sinks, source.blocks[2].attention.sinks)
    assert {f"blocks.{i}.attention.{name}" for i in range(3) for name in ("sinks", "query_norm.weight")} <= names[
        LOADED
    ]


@pytest.mark.parametrize("pos", ["learned", "alibi", "none"])
@pytest.mark.parametrize(
    ("source", "latent"),
    [
        pytest.param({}, {"kv_lora_rank": 33}, id="a norm that a constant passes"),
        pytest.param({}, {"kv_lora_rank": 32, "latent_norm": None}, id="no norm"),
        pytest.param({}, {"kv_lora_rank": 40, "latent_norm": "scalenorm"}, id="another norm, room to spare"),
        pytest.param({}, {"kv_lora_rank": 33, "q_lora_rank": 34}, id="query latent with biases"),
        pytest.param({}, {"kv_lora_rank": 33, "q_lora_rank": 33, "latent_norm": None}, id="query latent, no norm"),
        pytest.param({}, {"kv_lora_rank": 33, "scale": 0.2}, id="own scale"),
        pytest.param({"attention": "gqa"}, {"kv_lora_rank": 33}, id="shared heads"),
        pytest.param({"attention": "mqa"}, {"kv_lora_rank": 17}, id="one head for all: two widths of it"),
        pytest.param(LLAMA, {"kv_lora_rank": 32, "latent_norm": None}, id="no biases"),
    ],
)
def test_a_latent_of_full_rank_is_exact(source: dict[str, Any], latent: dict[str, Any], pos: str) -> None:
    old = trained(**{**source, "pos": pos})
    new, _, _ = changed(old, attention={"name": "mla", **latent})
    assert apart(new, old) < 5 * TOLERANCE


def test_a_smaller_latent_is_the_best_approximation_of_its_rank() -> None:
    """The error decreases with the rank, and is the smallest possible one of that rank."""
    source = trained()
    old = source.blocks[1].attention
    matrix = torch.cat([old.key.weight, old.value.weight])
    errors = []
    for rank in (4, 8, 16, 24):
        model, _, table = changed(source, attention={"name": "mla", "kv_lora_rank": rank, "latent_norm": None})
        new = model.blocks[1].attention
        product = torch.cat([new.key.weight, new.value.weight]) @ new.latent.weight
        errors.append((matrix - product).norm().item())
        best = torch.linalg.svdvals(matrix)[rank:].norm().item()  # Eckart and Young, 1936
        assert errors[-1] == pytest.approx(best, rel=1e-4)
        assert f"rank {rank} by SVD" in table
    assert errors == sorted(errors, reverse=True)


def test_a_latent_with_rotation_starts_like_one_without() -> None:
    """The rotated channels of the queries are initially zero, and have a non-zero gradient."""
    source = trained(pos="none")
    model, names, _ = changed(source, attention={"name": "mla", "kv_lora_rank": 33}, pos="rope")
    assert apart(model, source) < 5 * TOLERANCE
    model.train()(ids(61), ids(61)).loss.backward()
    query = model.blocks[0].attention.query.weight.grad
    assert query is not None and query.unflatten(0, (4, -1))[:, 8:].abs().max() > 0
    assert {"blocks.0.attention.latent.weight", "blocks.0.attention.out.bias"} <= names[CONVERTED]


def test_after_surgery_every_parameter_has_a_gradient() -> None:
    model, _, _ = changed(trained(), attention={"name": "mla", "kv_lora_rank": 16, "q_lora_rank": 20})
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    tokens, losses = ids(61), []
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:]).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0] - 1.5
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("mixer", ["linear", "lightning", "gated_delta", "kda"])
def test_projections_are_transferred_to_recurrences_and_back(mixer: str) -> None:
    source = trained(bias=False)
    model, names, _ = changed(source, attention=mixer)
    back, _, _ = changed(model, attention="mha")
    names[NEW] = {name for name in names[NEW] if ".norm." not in name}
    for projection in ("query", "key", "value", "out"):
        assert torch.equal(
            getattr(model.blocks[0].attention, projection).weight,
            getattr(source.blocks[0].attention, projection).weight,
        )
    assert not names[SKIPPED] and (mixer != "linear" or not names[NEW])
    scale = back.blocks[
        0
    ].attention.scoring.scale  # a recurrence has no scale: that of attention is merged into the queries
    weights = (model.blocks[0].attention.query.weight / scale, model.blocks[0].attention.key.weight)
    assert torch.allclose(back.blocks[0].attention.query.weight, weights[0])
    assert torch.equal(back.blocks[0].attention.key.weight, weights[1])


def test_mixers_with_other_heads_are_new() -> None:
    """Fewer key heads than value heads, and no heads."""
    for attention in ({"name": "gated_delta", "key_heads": 2}, "shortconv"):
        model, names, _ = changed(trained(bias=False), attention=attention)
        assert "blocks.0.attention.value.weight" in names[NEW] & names[SKIPPED]
        _, names, _ = changed(model, attention="mha")
        assert "blocks.0.attention.value.weight" in names[NEW] & names[SKIPPED]


def test_incompatible_tensors_are_new_and_reported() -> None:
    source = trained()
    for attention in ({"name": "mha", "head_dim": 6}, {"name": "mla", "v_head_dim": 6}):
        model, names, table = changed(source, attention=attention)
        assert all(f"blocks.{i}.attention.query.weight" in names[NEW] & names[SKIPPED] for i in range(3))
        assert "new" in table and "skipped" in table and "blocks.0-2.attention.query.weight" in table
        assert torch.equal(model.blocks[0].ffn.up.weight, source.blocks[0].ffn.up.weight)


# --- feed-forward networks, norms, tables


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_experts_from_a_dense_network(ffn: str, scale: float) -> None:
    """https://arxiv.org/abs/2212.05055: equal experts with weights that sum to 1 equal the dense network."""
    source = trained(ffn=ffn)
    settings = {"expert": "mlp", "activation": "gelu_tanh"} if ffn == "mlp" else {}
    moe = {"name": "moe", "n_experts": 4, "routed_scale": scale, **settings}
    model, names, _ = changed(source, ffn=moe)
    assert apart(model, source) < TOLERANCE
    assert names[NEW] == {f"blocks.{i}.ffn.router.weight" for i in range(3)} and not names[SKIPPED]


def test_a_gate_is_added_or_removed() -> None:
    source = trained()
    model, names, _ = changed(source, ffn={"name": "swiglu", "hidden": 128})
    assert torch.equal(model.blocks[1].ffn.down.weight, source.blocks[1].ffn.down.weight)
    assert "blocks.1.ffn.gate.weight" in names[NEW] and not names[SKIPPED]
    back, names, _ = changed(model, ffn={"name": "mlp", "hidden": 128})
    assert "blocks.1.ffn.gate.weight" in names[SKIPPED] and not names[NEW]
    assert apart(back, source) == 0


def test_another_width_is_new() -> None:
    _, names, _ = changed(trained(), ffn={"hidden": 50})
    assert "blocks.0.ffn.up.weight" in names[NEW] & names[SKIPPED]


def test_norms_convert_between_weight_conventions() -> None:
    """A norm that stores its scale around 0 equals one that stores it around 1."""
    source = trained(norm="rmsnorm")
    model, names, _ = changed(source, norm={"weight_offset": True})
    assert apart(model, source) < TOLERANCE and "final_norm.weight" in names[CONVERTED]
    assert apart(changed(model, norm={"weight_offset": False})[0], source) < TOLERANCE
    layernorm = trained()
    model, names, _ = changed(layernorm, norm="rmsnorm")
    assert torch.equal(model.final_norm.weight, layernorm.final_norm.weight) and "final_norm.bias" in names[SKIPPED]
    model, _, _ = changed(source, norm="scalenorm")
    assert model.final_norm.weight.item() == pytest.approx(source.final_norm.weight.mean().item() * 32**0.5, rel=1e-5)


def test_tables_keep_their_common_rows() -> None:
    source = trained()
    model, names, table = changed(source, vocab_size=70, context_length=20)
    assert torch.equal(model.embedding.weight[:61], source.embedding.weight)
    assert torch.equal(model.positions[0].table.weight, source.positions[0].table.weight[:20])
    assert "the first 61 rows" in table and "the first 20 rows" in table and not names[SKIPPED]


def test_an_untied_head_starts_as_the_embedding() -> None:
    source = trained()
    model, names, _ = changed(source, tie_embeddings=False)
    assert "head.weight" in names[CONVERTED] and apart(model, source) == 0
    assert "head.weight" in changed(model, tie_embeddings=True)[1][SKIPPED]


def test_more_and_fewer_layers() -> None:
    source = trained()
    deeper, names, _ = changed(source, n_layers=5)
    assert {name.split(".")[1] for name in names[NEW]} == {"3", "4"}
    assert torch.equal(deeper.blocks[2].ffn.up.weight, source.blocks[2].ffn.up.weight)
    _, names, _ = changed(source, n_layers=1)
    assert {name.split(".")[1] for name in names[SKIPPED]} == {"1", "2"}


def test_other_positions() -> None:
    _, names, _ = changed(trained(), pos="rope")
    assert names[SKIPPED] == {"positions.0.table.weight"} and not names[NEW] | names[CONVERTED]


def test_norms_after_the_sublayers_are_new() -> None:
    _, names, _ = changed(trained(), topology="sandwich")
    assert {"blocks.0.attention_post_norm.weight", "blocks.2.ffn_post_norm.bias"} <= names[NEW]
    assert "blocks.0.attention_norm.weight" in names[LOADED]


@pytest.mark.parametrize("changes", [{"attention": "gqa", "ffn": "moe"}, {"attention": "mla"}, {"n_layers": 2}])
def test_the_table_is_complete(changes: dict[str, Any]) -> None:
    """Every tensor of the new model has one line, and the totals are correct."""
    source = trained()
    model, report = transplant(source, with_components(source.config, changes))
    names = [row.name for row in report.rows if row.status != SKIPPED]
    assert sorted(names) == sorted(model.state_dict())
    total = sum(tensor.numel() for tensor in model.state_dict().values())
    assert sum(report.count(status) for status in (LOADED, CONVERTED, NEW)) == total
    assert {row.name for row in report.rows if row.status == SKIPPED} <= set(source.state_dict())


# --- configs and losses


def test_changes_of_a_config() -> None:
    config = trained(attention={"name": "gqa", "n_kv_heads": 2}, pos="rope").config
    assert with_components(config, {"attention": {"window": 7}}).attention.n_kv_heads == 2
    assert with_components(config, {"attention": "mla"}).pos == config.pos
    with pytest.raises(ConfigError, match="did you mean 'gqa'"):
        with_components(config, {"attention": "gqaa"})
    with pytest.raises(ConfigError, match="n_layerz"):
        with_components(config, {"n_layerz": 3})


@pytest.mark.parametrize("count", [2, 32, 33, 34, 100, 700])
def test_loss_of_a_text(count: int) -> None:
    model, tokens = trained(), torch.randint(61, (count,))
    total = 0.0
    for start in range(0, count - 1, 32):  # reference: one window after another
        window = tokens[start : start + 33]
        with torch.no_grad():
            chances: Tensor = model(window[None, :-1])[0].softmax(-1)
        total -= sum(chances[i, token].log().item() for i, token in enumerate(window[1:]))
    model.train()
    assert text_loss(model, tokens, batch=3) == pytest.approx(total / (count - 1), rel=1e-4)
    assert model.training
