"""Probes: properties of a model that follow from its config, checked without training in milliseconds.

Each takes a model and returns an ``Answer``, or None if the property does not apply. Weights may be random, and are not
changed. Probes work with any model, including one with an attention from outside this package.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.inspection import capture
from modular_gpt.model import GPTModel
from modular_gpt.model.config import BlockConfig, GPTConfig
from modular_gpt.nn.pos.alibi import ALiBi

TOKENS = 16
CLOSE = 1e-4  # of the largest value, float32
LARGE = 1024.0


@dataclass(frozen=True)
class Answer:
    """The result of a probe, and the expected one."""

    passed: bool
    found: str
    expected: str


def ids_of(model: GPTModel, rows: int = 1, tokens: int = TOKENS) -> Tensor:
    """Random ids (rows, tokens), the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (rows, tokens), generator=generator)


@contextmanager
def mode(model: GPTModel, training: bool) -> Iterator[None]:
    """Context manager: the model in training or evaluation mode."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def gradients(model: GPTModel) -> Answer:
    """Every trained parameter gets a gradient that is not zero."""
    ids = ids_of(model, rows=8)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with mode(model, training=True), torch.random.fork_rng(devices=[]):
        loss = model(ids[:, :-1], ids[:, 1:]).loss
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    model.after_skipped_step()
    dead = [name for name, gradient in zip(trained, found, strict=True) if gradient is None or not gradient.any()]
    return Answer(not dead, ", ".join(dead) or "all", "all")


def receptive_field(model: GPTModel) -> Answer | None:
    """A token depends on exactly the last min(t, reach) tokens before it; see ``reach``. By autograd, in float64."""
    expected = reach(model.config)
    if expected is None:
        return None
    seen = dependencies(model)
    distance = torch.arange(len(seen))[:, None] - torch.arange(len(seen))
    right = (distance >= 0) & (distance <= expected)
    farthest = int(distance[seen].max())
    shown = "all earlier tokens" if expected >= len(seen) - 1 else f"{expected} tokens back"
    return Answer(bool(torch.equal(seen, right)), _field(seen, farthest), shown)


def _field(seen: Tensor, farthest: int) -> str:
    if seen.triu(1).any():
        return "later tokens"
    complete = bool((seen.sum(1) == (torch.arange(len(seen)) + 1).clamp(max=farthest + 1)).all())
    whole = "all earlier tokens" if farthest == len(seen) - 1 else f"{farthest} tokens back"
    return whole if complete else f"{whole}, with gaps"


def reach(config: GPTConfig) -> int | None:
    """The number of tokens back that a token sees through all layers: the sum of window - 1, and of conv - 1.

    None if a layer does not see all tokens of its window.
    """
    total = 0
    for layer in config.layer_configs:
        spec = layer.cache_spec(config.dims)
        if not layer.attention_class.sees_whole_window:
            return None
        total += config.context_length if spec.window is None else spec.window - 1
        total += 0 if spec.history is None else spec.history[1]
    return total


def dependencies(model: GPTModel, tokens: int = TOKENS) -> Tensor:
    """Whether the logits of each token depend on each token of the text, (T, T), by one backward pass.

    In row t of a batch of T equal rows, gradients come from the logits of token t alone.
    """
    weights = {name: value.double() for name, value in model.state_dict().items() if value.is_floating_point()}
    inputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        inputs.append(output.detach().requires_grad_())
        return inputs[0]

    hook = model.embedding.register_forward_hook(keep)
    try:
        with mode(model, training=False), torch.enable_grad():
            logits = torch.func.functional_call(model, weights, (ids_of(model, tokens=tokens).expand(tokens, -1),))
    finally:
        hook.remove()
    own = logits.diagonal().square().sum()
    return torch.autograd.grad(own, inputs)[0].abs().sum(-1) > 0


@torch.no_grad()
def same_scores_later(model: GPTModel) -> Answer | None:
    """The scores of a text do not depend on its place in the row, for positions that count distances alone."""
    if not model.slides:
        return None
    ids, skipped = ids_of(model), _history(model.config)
    with mode(model, training=False), strengthened(model):
        scores = recorded(model, torch.cat([ids, ids], dim=1), "scores")
    if scores is None:
        return None
    first, second = scores[..., skipped:TOKENS, skipped:TOKENS], scores[..., TOKENS + skipped :, TOKENS + skipped :]
    visible = first.isfinite() & second.isfinite()
    moved = float((first - second)[visible].abs().max())
    largest = float(scores[scores.isfinite()].abs().max())
    return Answer(moved <= 10 * CLOSE * largest, f"off by {moved / max(largest, 1e-30):.1e}", "the same")


def _history(config: GPTConfig) -> int:
    """The number of earlier tokens on which a token's scores in the first layer depend."""
    history = config.layer_configs[0].cache_spec(config.dims).history
    return 0 if history is None else history[1]


@torch.no_grad()
def alibi_slopes(model: GPTModel) -> Answer | None:
    """With queries of zero, scores fall by the slope of their head from one key to the next."""
    pos, name = model.config.layer_configs[0].pos, "blocks.0.attention"
    if not isinstance(pos, ALiBi.Config):
        return None
    edit = {f"{name}.query": torch.zeros_like}
    with mode(model, training=False), capture(model, f"{name}.scores", edit=edit) as seen:
        model(ids_of(model))
    scores = seen[f"{name}.scores"][0, :, -1]
    found = (scores[:, -1] - scores[:, -2]).tolist()
    expected = [slope * pos.scale for slope in published_slopes(len(found), pos.max_bias)]
    tolerance = 0.05 if pos.rounded else 1e-3  # a difference of two products in bfloat16
    close = all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(found, expected, strict=True))
    return Answer(close, _numbers(found), _numbers(expected))


def published_slopes(n_heads: int, max_bias: float) -> list[float]:
    """The slopes of the paper: powers of one ratio; heads beyond a power of two take every second of the next one."""
    power = 1
    while 2 * power <= n_heads:
        power *= 2
    exponents = [(h + 1) / power for h in range(power)] + [(2 * h + 1) / (2 * power) for h in range(n_heads - power)]
    return [2.0 ** (-max_bias * exponent) for exponent in exponents]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


@torch.no_grad()
def weights_sum_to_one(model: GPTModel) -> Answer | None:
    """The attention weights of a query sum to one; with sinks, to less than one. For attentions with a softmax."""
    layer = model.config.layer_configs[0]
    if not layer.attention_class.accepts_bias:
        return None  # without a softmax, weights may have any sign and sum
    with mode(model, training=False):
        weights = recorded(model, ids_of(model), "weights")
    if weights is None:
        return None
    sums = weights.sum(-1)
    lowest, highest = float(sums.min()), float(sums.max())
    if getattr(layer.attention, "sinks", False):
        return Answer(lowest > 0 and highest < 1, f"{lowest:.4f} to {highest:.4f}", "between 0 and 1")
    return Answer(max(1 - lowest, highest - 1) < CLOSE, f"{lowest:.5f} to {highest:.5f}", "1")


@torch.no_grad()
def scores_are_scaled_products(model: GPTModel) -> Answer | None:
    """Scores are ``scale`` times query times the key of their group, limited by ``softcap``, plus the position's bias.

    For attentions that have these settings.
    """
    layer = model.config.layer_configs[0]
    scale = getattr(layer.attention, "scale", None)
    if scale is None:
        return None
    with mode(model, training=False), strengthened(model), capture(model, "blocks.0.attention.*") as seen:
        model(ids_of(model))
    q, k, scores = (seen[f"blocks.0.attention.{name}"].double() for name in ("query", "key", "scores"))
    expected = scale * torch.einsum("bhtn,bhsn->bhts", q, by_query_head(k, q.shape[1]))
    cap = getattr(layer.attention, "softcap", None)
    expected = expected if cap is None else cap * torch.tanh(expected / cap)
    expected = expected + _alibi(layer, q.shape[1])
    visible = scores.isfinite()
    error = float((scores - expected)[visible].abs().max() / expected[visible].abs().max().clamp(min=1e-30))
    return Answer(error < CLOSE, f"off by {error:.1e}", "scale q k" + ("" if cap is None else " within the softcap"))


def _alibi(layer: BlockConfig, n_heads: int) -> Tensor:
    """The bias of ALiBi on the scores of ``TOKENS`` tokens, (H, T, T); 0 for other positions."""
    if not isinstance(layer.pos, ALiBi.Config):
        return torch.zeros(1)
    columns = torch.arange(TOKENS)
    slopes = torch.tensor(published_slopes(n_heads, layer.pos.max_bias), dtype=torch.float64)[:, None, None]
    if layer.pos.rounded:
        return (slopes.bfloat16() * columns.bfloat16()).double() * layer.pos.scale
    return -slopes * (columns[:, None] - columns) * layer.pos.scale


@torch.no_grad()
def heads_are_weighted_values(model: GPTModel) -> Answer | None:
    """Each head returns the sum of the values of its group, weighted by its attention weights."""
    with mode(model, training=False), strengthened(model):
        try:
            with capture(model, "blocks.0.attention.*") as seen:
                model(ids_of(model))
        except ConfigError:
            return None
    names = [f"blocks.0.attention.{name}" for name in ("weights", "value", "heads")]
    if any(name not in seen for name in names):
        return None
    weights, values, heads = (seen[name].double() for name in names)
    expected = torch.einsum("bhts,bhsm->bhtm", weights, by_query_head(values, weights.shape[1]))
    error = float((heads - expected).abs().max() / expected.abs().max())
    return Answer(error < CLOSE, f"off by {error:.1e}", "weights times values")


def by_query_head(x: Tensor, n_heads: int) -> Tensor:
    """(B, K, S, N) -> (B, H, S, N): the key or value head of each query head, H / K neighbours sharing one."""
    return torch.stack([x[:, head * x.shape[1] // n_heads] for head in range(n_heads)], dim=1)


@torch.no_grad()
def cache_equals_full_pass(model: GPTModel) -> Answer:
    """Decoding with a cache, in chunks and token by token, gives the logits of one pass."""
    ids = ids_of(model, rows=2)
    with mode(model, training=False), strengthened(model):
        full, cache = model(ids), model.new_cache(2, TOKENS)
        logits = [model(chunk, cache=cache) for chunk in ids.split([3, 1, 1, 5, *[1] * (TOKENS - 10)], dim=1)]
    error = float((torch.cat(logits, dim=1) - full).abs().max() / full.std())
    return Answer(error < 10 * CLOSE, f"off by {error:.1e}", "the same")


@torch.no_grad()
def evaluation_is_deterministic(model: GPTModel) -> Answer:
    """In evaluation mode two passes give the same logits: no dropout is left."""
    ids = ids_of(model, rows=2)
    with mode(model, training=False):
        same = torch.equal(model(ids), model(ids))
    return Answer(same, "the same" if same else "two results", "the same")


@torch.no_grad()
def head_is_tied(model: GPTModel) -> Answer | None:
    """With ``tie_embeddings`` the head multiplies by the embedding, even after the embedding has changed."""
    if not model.config.tie_embeddings:
        return None
    ids, config = ids_of(model), model.config
    with mode(model, training=False), capture(model, "final") as seen:
        model(ids)
    final, cap = seen["final"], config.logit_softcap
    with scaled([model.embedding.weight], 2.0):
        moved = model.logits(final)
        expected = final @ model.embedding.weight.T
    expected = expected if model.head_bias is None else expected + model.head_bias
    expected = expected * config.logit_scale
    expected = expected if cap is None else cap * torch.tanh(expected / cap)
    error = float((moved - expected).abs().max() / expected.std())
    return Answer(error < CLOSE, f"off by {error:.1e}", "the embedding")


@torch.no_grad()
def norms_of_projections(model: GPTModel) -> Answer | None:
    """The output of a norm after a projection inside the attention does not depend on the scale of the projection.

    For ``latent_norm`` and ``qk_norm``.
    """
    settings = model.config.layer_configs[0].attention
    names = [name for name in ("latent_norm", "qk_norm") if getattr(settings, name, None) is not None]
    if not names:
        return None
    ids, attention = ids_of(model), model.blocks[0].attention
    with mode(model, training=False):
        rows = _normed_rows(attention, settings)
        with scaled(rows, LARGE):  # so that eps does not count
            before = model(ids)
            with scaled(rows, 8.0):
                after = model(ids)
    error = float((after - before).abs().max() / before.std())
    return Answer(error < 100 * CLOSE, f"changes by {error:.1e}", "no change")


def _normed_rows(attention: nn.Module, settings: ComponentConfig) -> list[Tensor]:
    """The rows of weights and biases whose outputs are normalised."""
    names = ["query", "key"] if getattr(settings, "qk_norm", None) is not None else ["latent"]
    rank = getattr(settings, "kv_lora_rank", None)
    found = []
    for name in names:
        layer = attention.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise ConfigError(f"the probe of norms inside an attention needs a linear layer '{name}'")
        rows = rank if name == "latent" else layer.out_features
        found += [layer.weight[:rows]] + ([] if layer.bias is None else [layer.bias[:rows]])
    return found


@contextmanager
def scaled(tensors: list[Tensor], factor: float) -> Iterator[None]:
    """Context manager: tensors are multiplied by a power of two, so that they are restored exactly."""
    for tensor in tensors:
        tensor.mul_(factor)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.div_(factor)


@contextmanager
def strengthened(model: GPTModel) -> Iterator[None]:
    """Context manager: linear layers of all attentions are multiplied by 4, so that scores are far from zero."""
    attentions = [module for block in model.blocks for module in block.attention.modules()]
    layers = [module.weight for module in attentions if isinstance(module, nn.Linear)]
    with scaled(layers, 4.0):
        yield


def recorded(model: GPTModel, ids: Tensor, name: str) -> Tensor | None:
    """A tensor of the first attention by its name in ``capture``; None if the attention does not report it."""
    try:
        with capture(model, f"blocks.0.attention.{name}") as seen:
            model(ids)
    except ConfigError:
        return None
    return seen[f"blocks.0.attention.{name}"]


PROBES: dict[str, Callable[[GPTModel], Answer | None]] = {
    "every parameter gets a gradient": gradients,
    "receptive field": receptive_field,
    "scores do not depend on the place": same_scores_later,
    "ALiBi slopes": alibi_slopes,
    "attention weights sum to one": weights_sum_to_one,
    "scores are scaled products": scores_are_scaled_products,
    "heads are weighted values": heads_are_weighted_values,
    "norms inside the attention act": norms_of_projections,
    "the cache gives the same": cache_equals_full_pass,
    "evaluation is deterministic": evaluation_is_deterministic,
    "the head is the embedding": head_is_tied,
}
