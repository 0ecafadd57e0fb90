"""Each component equals a reference implementation for one token at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt import GPTConfig
from modular_gpt.core.contracts import Positions
from modular_gpt.core.registry import ComponentConfig, decode, entries
from modular_gpt.nn.pos.alibi import slopes
from tests.components.cases import MODEL
from tests.components.laws import build

WIDTH = MODEL["d_model"]
HEADS = MODEL["n_heads"]
TOKENS = 12


def component(slot: str, settings: dict, **model: object) -> nn.Module:
    """The first block's attention or ffn with wide weights."""
    block = build(GPTConfig(**{**MODEL, slot: settings, **model})).blocks[0]
    return getattr(block, slot)


def inputs(seed: int = 3) -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


def positions() -> Positions:
    return Positions(0, TOKENS, None, torch.device("cpu"))


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)


# ----------------------------------------------------------------- norms


def naive_norm(name: str, x: Tensor, norm: nn.Module, eps: float) -> Tensor:
    if name == "layernorm":
        centred = x - x.mean()
        return centred / math.sqrt(centred.square().mean() + eps) * norm.weight + norm.bias
    if name == "rmsnorm":
        return x / math.sqrt(x.square().mean() + eps) * norm.weight
    return norm.weight * x / max(math.sqrt(x.square().sum()), eps)


def built(settings: ComponentConfig) -> nn.Module:
    return settings.component(settings.component.resolved(settings, True), WIDTH, True)


@pytest.mark.parametrize("name", entries("norm"))
@pytest.mark.parametrize("eps", [1e-5, 0.3])
@torch.no_grad()
def test_norm(name: str, eps: float) -> None:
    settings = decode("norm", {"name": name, "eps": eps})
    norm = built(settings)
    for parameter in norm.parameters():
        parameter.normal_()
    x = inputs() * 0.1
    expected = torch.stack([torch.stack([naive_norm(name, token, norm, eps) for token in row]) for row in x])
    assert_same(norm(x), expected)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@torch.no_grad()
def test_rmsnorm_around_one(eps: float) -> None:
    settings = decode("norm", {"name": "rmsnorm", "weight_offset": True, "eps": eps})
    norm, x = built(settings), inputs()
    assert torch.equal(norm.weight, torch.zeros(WIDTH))
    norm.weight.normal_()
    assert_same(norm(x), x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (1 + norm.weight))


@torch.no_grad()
def test_scalenorm_starts_at_the_square_root_of_the_width() -> None:
    settings = decode("norm", "scalenorm")
    norm = built(settings)
    assert_same(norm(inputs()).norm(dim=-1), torch.full((2, TOKENS), math.sqrt(WIDTH)))


@pytest.mark.parametrize("name", entries("norm"))
def test_norm_of_zeros_is_finite(name: str) -> None:
    settings = decode("norm", name)
    x = torch.zeros(1, WIDTH, requires_grad=True)
    built(settings)(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


# ------------------------------------------------------------- positions


def position(settings: object, **model: object) -> nn.Module:
    return build(GPTConfig(**{**MODEL, "pos": settings, **model})).positions[0]


def test_sinusoidal() -> None:
    got = position({"name": "sinusoidal", "theta": 500.0}).embed(torch.zeros(1, TOKENS, WIDTH), positions())
    for t in range(TOKENS):
        for i in range(WIDTH // 2):
            angle = t / 500 ** (2 * i / WIDTH)
            assert got[0, t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert got[0, t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@torch.no_grad()
def test_learned() -> None:
    learned = position("learned")
    assert torch.equal(learned.embed(inputs(), positions()), inputs() + learned.table.weight[:TOKENS])


@pytest.mark.parametrize("rotary_dim", [None, 4])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@torch.no_grad()
def test_rope_turns_pairs_as_complex_numbers(layout: str, rotary_dim: int | None) -> None:
    x = torch.randn(2, HEADS, TOKENS, 8)
    rope = position({"name": "rope", "theta": 50.0, "layout": layout, "rotary_dim": rotary_dim})
    got = rope.rotate(x, positions())
    dim = rotary_dim or 8
    expected = x.clone()
    for i in range(dim // 2):
        a, b = (i, i + dim // 2) if layout == "half" else (2 * i, 2 * i + 1)
        turn = torch.polar(torch.ones(TOKENS), torch.arange(TOKENS) / 50.0 ** (2 * i / dim))
        turned = torch.complex(x[..., a], x[..., b]) * turn
        expected[..., a], expected[..., b] = turned.real, turned.imag
    assert_same(got, expected)


@torch.no_grad()
def test_rope_angles_stay_exact_in_half_precision() -> None:
    """At position 5,000 an angle in bfloat16 would be off by whole turns."""
    far = Positions(5000, 4, None, torch.device("cpu"))
    x = torch.randn(1, 1, 4, 8)
    rope = position("rope").bfloat16()
    assert (rope.rotate(x.bfloat16(), far).float() - rope.rotate(x, far)).abs().max() < 0.05


def test_alibi_slopes_of_the_paper() -> None:
    assert slopes(8) == [2.0**-i for i in range(1, 9)]
    assert slopes(16) == pytest.approx([2.0 ** (-i / 2) for i in range(1, 17)])
    assert slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert slopes(1) == [2.0**-8] and slopes(3)[:2] == slopes(2)


@torch.no_grad()
def test_alibi_bias() -> None:
    got = position("alibi").bias(positions(), torch.arange(TOKENS), HEADS)
    for head, slope in enumerate(slopes(HEADS)):
        for q in range(TOKENS):
            for k in range(q + 1):
                assert got[0, head, q, k].item() == pytest.approx(-slope * (q - k))


# ------------------------------------------------------------- attention


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, **options: object) -> Tensor:
    """q (T, N), k (T, N), v (T, M) of one head -> (T, M), by the definition, in loops."""
    out = []
    for t in range(TOKENS):
        first = max(0, t - options["window"] + 1) if options.get("window") else 0
        scores = torch.stack([q[t] @ k[s] * scale for s in range(first, t + 1)])
        if options.get("softcap"):
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        if options.get("slope"):
            scores = scores - options["slope"] * torch.arange(t - first, -1, -1)
        if options.get("sink") is not None:
            weights = torch.cat([scores, options["sink"][None]]).softmax(0)[:-1]
        else:
            weights = scores.softmax(0)
        out.append(sum(weight * v[s] for weight, s in zip(weights, range(first, t + 1), strict=True)))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("settings", "pos"),
    [
        ({}, "none"),
        ({}, "rope"),
        ({"n_kv_heads": 2}, "alibi"),
        ({"n_kv_heads": 1, "head_dim": 6}, "rope"),
        ({"window": 3}, "none"),
        ({"window": 3, "softcap": 2.0, "scale": 0.7}, "alibi"),
        ({"sinks": True, "n_kv_heads": 2}, "none"),
        ({"sinks": True, "softcap": 2.0, "window": 4}, "none"),
        ({"qk_norm": "rmsnorm"}, "rope"),
        ({"qk_norm": "rmsnorm", "qk_norm_after_rope": True}, "rope"),
        ({"qk_norm": "layernorm", "qk_norm_scope": "full"}, "rope"),
        ({"clip_qkv": 0.4}, "none"),
        ({"clip_qkv": 0.4, "qk_norm": "rmsnorm"}, "rope"),
        ({"clip_qkv": 0.4, "qk_norm": "rmsnorm", "qk_norm_scope": "full"}, "rope"),
        ({"qk_norm": {"name": "rmsnorm", "weight_offset": True}}, "rope"),
        ({"qk_norm": "layernorm", "qk_norm_scope": "per_head", "n_kv_heads": 2, "qk_norm_eps": 0.1}, "rope"),
        ({"v_head_dim": 6, "value_scale": 0.7, "n_kv_heads": 2}, "rope"),
        ({"output_gate": "sigmoid"}, "none"),
        ({"output_gate": "softplus", "output_gate_per_head": True, "v_head_dim": 12}, "rope"),
        ({"query_temperature": {"beta": 0.5, "length": 3.0, "shift": 1}}, "rope"),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["auto", "math"])
@torch.no_grad()
def test_multi_head_attention(settings: dict, pos: str, backend: str) -> None:
    module = component("attention", {"name": "mha", "backend": backend, **settings}, pos=pos)
    x, where = inputs(), positions()
    q, k, v = module.query(x), module.key(x), module.value(x)
    after, full = settings.get("qk_norm_after_rope"), settings.get("qk_norm_scope") == "full"
    if full:  # OLMoE: the norm of the full width is applied before clipping
        q, k = module.query_norm(q), module.key_norm(k)
    if clip := settings.get("clip_qkv"):
        q, k, v = (tensor.clip(-clip, clip) for tensor in (q, k, v))
    n = settings.get("head_dim", WIDTH // HEADS)

    def placed(y: Tensor, norm: nn.Module | None) -> Tensor:
        y = torch.stack(y.split(n, dim=-1), dim=1)
        if settings.get("qk_norm_scope") == "per_head":
            y = torch.stack(
                [F.layer_norm(h, (n,), w, None, 0.1) for h, w in zip(y.unbind(1), norm.weight, strict=True)], dim=1
            )
        else:
            y = norm(y) if norm is not None and not full and not after else y
        y = module.position.rotate(y, where)
        return norm(y) if after else y

    q, k = placed(q, module.query_norm), placed(k, module.key_norm)
    v = torch.stack(v.split(settings.get("v_head_dim", n), dim=-1), dim=1) * settings.get("value_scale", 1.0)
    if growth := settings.get("query_temperature"):
        steps = [math.floor((t + growth["shift"]) / growth["length"]) for t in range(TOKENS)]
        q = q * torch.tensor([1 + growth["beta"] * math.log(1 + step) for step in steps])[:, None]
    shared = HEADS // settings.get("n_kv_heads", HEADS)
    rows = []
    for row in range(2):
        heads = [
            softmax_attention(
                q[row, head],
                k[row, head // shared],
                v[row, head // shared],
                settings.get("scale", n**-0.5),
                window=settings.get("window"),
                softcap=settings.get("softcap"),
                slope=slopes(HEADS)[head] if pos == "alibi" else None,
                sink=module.sinks[head] if settings.get("sinks") else None,
            )
            for head in range(HEADS)
        ]
        if name := settings.get("output_gate"):
            gates = {"sigmoid": torch.sigmoid, "softplus": F.softplus}[name](module.gate(x[row])).chunk(HEADS, dim=-1)
            heads = [head * gate for head, gate in zip(heads, gates, strict=True)]
        rows.append(module.out(torch.cat(heads, dim=-1)))
    assert_same(module(x, where), torch.stack(rows))


@pytest.mark.parametrize(
    ("settings", "pos"),
    [
        ({}, "none"),
        ({}, "rope"),
        ({"q_lora_rank": 10, "window": 4}, "rope"),
        ({"kv_lora_rank": 12, "qk_nope_head_dim": 6, "v_head_dim": 10, "softcap": 2.0}, "alibi"),
    ],
    ids=str,
)
@torch.no_grad()
def test_latent_attention(settings: dict, pos: str) -> None:
    """Keys and values expanded for every head; the rotated key is one for all heads."""
    module = component("attention", {"name": "mla", **settings}, pos=pos)
    x, where = inputs(), positions()
    latent, nope, rope, _ = module.widths
    assert latent == settings.get("kv_lora_rank", WIDTH // 8) and rope == (4 if pos == "rope" else 0)
    squeezed = x if "q_lora_rank" not in settings else module.query_norm(module.query_down(x))
    q = torch.stack(module.query(squeezed).chunk(HEADS, dim=-1), dim=1)
    down = module.latent(x)
    kept = module.latent_norm(down[..., :latent])
    k = torch.stack(module.key(kept).chunk(HEADS, dim=-1), dim=1)
    v = torch.stack(module.value(kept).chunk(HEADS, dim=-1), dim=1)
    if rope:
        turned = module.position.rotate(down[:, None, :, latent:], where).expand(-1, HEADS, -1, -1)
        k = torch.cat([k, turned], dim=-1)
        q = torch.cat([q[..., :nope], module.position.rotate(q[..., nope:], where)], dim=-1)
    rows = []
    for row in range(2):
        heads = [
            softmax_attention(
                q[row, head],
                k[row, head],
                v[row, head],
                (nope + rope) ** -0.5,
                window=settings.get("window"),
                softcap=settings.get("softcap"),
                slope=slopes(HEADS)[head] if pos == "alibi" else None,
            )
            for head in range(HEADS)
        ]
        rows.append(module.out(torch.cat(heads, dim=-1)))
    assert_same(module(x, where), torch.stack(rows))


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("pos", ["none", "rope"])
@torch.no_grad()
def test_linear_attention(pos: str, chunk: int) -> None:
    module = component("attention", {"name": "linear", "chunk": chunk}, pos=pos)
    x, where = inputs(), positions()
    q, k, v = (torch.stack(linear(x).chunk(HEADS, -1), 1) for linear in (module.query, module.key, module.value))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    turned_q, turned_k = module.position.rotate(q, where), module.position.rotate(k, where)
    out = torch.zeros_like(v)
    for t in range(TOKENS):
        total = sum((turned_q[:, :, t] * turned_k[:, :, s]).sum(-1, keepdim=True) * v[:, :, s] for s in range(t + 1))
        out[:, :, t] = total / sum((q[:, :, t] * k[:, :, s]).sum(-1, keepdim=True) for s in range(t + 1))
    assert_same(module(x, where), module.out(torch.cat(list(out.unbind(1)), dim=-1)))


# ---------------------------------------------------------- feed-forward

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "relu2": lambda x: torch.where(x > 0, x * x, 0.0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_mlp(activation: str) -> None:
    module, x = component("ffn", {"name": "mlp", "activation": activation}), inputs()
    assert module.up.out_features == 4 * WIDTH
    assert_same(module(x)[0], module.down(ACTIVATIONS[activation](module.up(x))))


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "clamped_swish"])
@torch.no_grad()
def test_gated(activation: str) -> None:
    module, x = component("ffn", {"name": "swiglu", "activation": activation, "hidden": 20}), inputs() * 4
    gate, up = module.gate(x), module.up(x)
    if activation == "clamped_swish":
        gate = gate.clamp(max=7)
        hidden = gate / (1 + torch.exp(-1.702 * gate)) * (up.clamp(-7, 7) + 1)
    else:
        hidden = ACTIVATIONS[activation](gate) * up
    assert_same(module(x)[0], module.down(hidden))


@pytest.mark.parametrize(("name", "activation"), [("swiglu", "silu"), ("geglu", "gelu_tanh"), ("reglu", "relu")])
def test_the_activations_of_gated_units(name: str, activation: str) -> None:
    assert entries("ffn")[name].default().activation == activation


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 1, "norm_topk": False},
        {"n_experts": 3, "top_k": 3, "expert": "mlp", "activation": "gelu"},
        {"score": "sigmoid", "balance": "bias", "routed_scale": 2.5, "shared_experts": 2},
        {"groups": 4, "top_groups": 2, "score": "sigmoid"},
        {"groups": 2, "top_groups": 1, "group_score": "top2", "router_bias": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_mixture_of_experts(settings: dict) -> None:
    """Token by token, expert by expert."""
    module, x = component("ffn", {"name": "moe", "hidden": 12, **settings}), inputs()
    config, select = module.config, torch.zeros(module.config.n_experts)
    if module.select_bias is not None:
        module.select_bias.copy_(select.normal_(std=0.3))

    def expert(index: int, token: Tensor) -> Tensor:
        up = module.up[index] @ token + module.up_bias[index]
        if module.gate is None:
            hidden = ACTIVATIONS["gelu"](up)
        else:
            hidden = ACTIVATIONS["silu"](module.gate[index] @ token + module.gate_bias[index]) * up
        return module.down[index] @ hidden + module.down_bias[index]

    def one(token: Tensor) -> Tensor:
        logits = module.router(token)
        scores = logits.sigmoid() if config.score == "sigmoid" else logits.softmax(0)
        ranking = (scores + select).tolist()
        size = config.n_experts // config.groups
        groups = [sorted(ranking[g * size : (g + 1) * size], reverse=True) for g in range(config.groups)]
        worth = [sum(group[: 2 if config.group_score == "top2" else 1]) for group in groups]
        best_groups = sorted(range(config.groups), key=lambda g: -worth[g])[: config.top_groups]
        allowed = [e for e in range(config.n_experts) if e // size in best_groups]
        chosen = sorted(allowed, key=lambda e: -ranking[e])[: config.top_k]
        total = sum(scores[e] for e in chosen) if config.norm_topk else 1.0
        out = sum(config.routed_scale * scores[e] / total * expert(e, token) for e in chosen)
        return out if module.shared is None else out + module.shared(token)[0]

    assert_same(module(x)[0], torch.stack([torch.stack([one(token) for token in row]) for row in x]))
    if module.shared is not None:
        assert module.shared.up.out_features == 12 * settings["shared_experts"]


@pytest.mark.parametrize(
    "settings", [{}, {"expert": "mlp", "activation": "relu"}, {"top_k": 3, "shared_experts": 1}], ids=str
)
def test_gradients_through_experts(settings: dict) -> None:
    """Gradients of the input and of every parameter equal those of a reference that runs all experts on all tokens."""
    module = component("ffn", {"name": "moe", "hidden": 12, **settings}).double()
    x = inputs().double().flatten(0, 1).requires_grad_()

    def everywhere(tokens: Tensor) -> Tensor:
        weights, chosen, _ = module._route(module.router(tokens))
        share = torch.zeros(len(tokens), 8, dtype=tokens.dtype).scatter(1, chosen, weights)
        up = torch.einsum("md,ehd->meh", tokens, module.up) + module.up_bias
        if module.gate is None:
            hidden = F.relu(up)
        else:
            hidden = F.silu(torch.einsum("md,ehd->meh", tokens, module.gate) + module.gate_bias) * up
        out = torch.einsum("meh,edh->med", hidden, module.down) + module.down_bias
        mixed = (share[..., None] * out).sum(1)
        return mixed if module.shared is None else mixed + module.shared(tokens)[0]

    direction = torch.randn_like(x)
    wanted = [x, *module.parameters()]
    gradients = torch.autograd.grad((module(x)[0] * direction).sum(), wanted)
    references = torch.autograd.grad((everywhere(x) * direction).sum(), wanted)
    for got, expected in zip(gradients, references, strict=True):
        assert_same(got, expected)


def moe_losses(settings: dict) -> tuple[dict[str, Tensor], Tensor]:
    module = component("ffn", {"name": "moe", **settings}).train()
    x = inputs()
    return module(x)[1], module.router(x.flatten(0, 1))


def test_moe_losses_by_hand() -> None:
    losses, logits = moe_losses({"balance_weight": 0.5, "z_weight": 0.1})
    scores = logits.softmax(-1)
    chosen = scores.topk(2).indices.flatten().tolist()
    even = 8 * sum(chosen.count(e) / len(chosen) * scores[:, e].mean() for e in range(8))
    assert set(losses) == {"load_balancing", "router_z"}
    assert_same(losses["load_balancing"], 0.5 * even)
    assert_same(losses["router_z"], 0.1 * logits.exp().sum(-1).log().square().mean())


def test_moe_balance_is_one_when_even() -> None:
    module = component("ffn", {"name": "moe", "balance_weight": 1.0, "n_experts": 4, "top_k": 4}).train()
    nn.init.zeros_(module.router.weight)
    assert_same(module(inputs())[1]["load_balancing"], torch.tensor(1.0))


def test_moe_losses_only_on_request() -> None:
    assert set(moe_losses({"balance": "bias"})[0]) == {"router_z"}
    assert moe_losses({"balance": "none", "z_weight": 0.0})[0] == {}
    module = component("ffn", {"name": "moe"})
    assert module.eval()(inputs())[1] == {}


def test_moe_bias_moves_against_the_load() -> None:
    module = component("ffn", {"name": "moe", "balance": "bias", "bias_step": 0.1}).train()
    module.select_bias.zero_()
    with torch.no_grad():
        chosen = module._route(module.router(inputs().flatten(0, 1)))[1]
    load = torch.bincount(chosen.flatten(), minlength=8).float()
    module(inputs())
    module.after_optimizer_step()
    assert_same(module.select_bias, 0.1 * torch.sign(load.mean() - load))
    before = module.select_bias.clone()
    module.after_optimizer_step()  # no new tokens since
    assert torch.equal(module.select_bias, before)
