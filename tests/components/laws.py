"""Laws of every component, as functions of a config that can be called on a new component.

    for law in LAWS:
        law(GPTConfig(**MODEL, attention="toy"))

Each raises an AssertionError if the model violates it. The weights are large, so that errors change the logits.
"""

import copy
import json
from collections.abc import Callable, Iterable

import pytest
import safetensors.torch
import torch
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.comparison.diagnostics import PROBES
from modular_gpt.core.cache import LayerCache, ModelCache, TokenCache
from modular_gpt.core.convolution_cache import ConvolutionCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.model.init import initialise
from modular_gpt.nn.matrices import no_matrices

STRONG = 0.4  # standard deviation of weights: scores and gates far from zero
TOLERANCE = 1e-4  # relative to the standard deviation of the logits, float32
TOKENS = 20
# probes that laws cover, with larger weights
COVERED = ("every parameter gets a gradient", "the cache gives the same")


def build(config: GPTConfig, std: float = STRONG, seed: int = 1) -> GPTModel:
    """Return a model in evaluation mode with large weights, and with norms, biases and sinks that are not neutral."""
    torch.manual_seed(seed)
    model = GPTModel(config)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim >= 2 and name not in no_matrices(module) and not parameter.eq(0).all():
                    parameter.mul_(std / config.init_std)
                else:
                    parameter.add_(torch.randn_like(parameter) * std)
    return model.eval()


_LAST: list[tuple[GPTConfig, GPTModel]] = []


def shared(config: GPTConfig) -> GPTModel:
    """Return ``build(config)``, cached for consecutive laws of one config, which must not change the model."""
    if not _LAST or _LAST[0][0] != config:
        _LAST[:] = [(config, build(config))]
    return _LAST[0][1]


def text(config: GPTConfig, rows: int = 3, tokens: int = TOKENS, seed: int = 2) -> Tensor:
    """Return random token ids (rows, tokens)."""
    return torch.randint(config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Check that the largest difference is at most ``tolerance`` standard deviations of ``expected``."""
    assert actual.shape == expected.shape
    error = (actual.float() - expected.float()).abs().max() / expected.float().std()
    assert error <= tolerance, f"differs by {error:.2e} standard deviations"


@torch.no_grad()
def feed(
    model: GPTModel, ids: Tensor, cache: ModelCache, counts: Iterable[int], padding: Tensor | None = None
) -> Tensor:
    """Return the logits (B, T, V) of ids that are read in chunks of ``counts`` tokens; the rest is one chunk."""
    logits, start = [torch.empty(len(ids), 0, model.config.vocab_size, dtype=model.embedding.weight.dtype)], 0
    for count in [*counts, ids.shape[1]]:
        chunk = ids[:, start : start + count]
        if chunk.shape[1]:
            logits.append(model(chunk, cache=cache, padding=padding if start == 0 else None))
        start += count
    return torch.cat(logits, dim=1)


@torch.no_grad()
def causal(config: GPTConfig) -> None:
    """Changing a token changes the logits at its position and none at earlier positions."""
    model, ids = shared(config), text(config)
    before = model(ids)
    for place in (1, TOKENS // 2, TOKENS - 1):
        other = ids.clone()
        other[:, place] = (other[:, place] + 1) % config.vocab_size
        after = model(other)
        close(after[:, :place], before[:, :place], 1e-5)
        assert (after[:, place] - before[:, place]).abs().max() > 1e-3


@torch.no_grad()
def rows_are_independent(config: GPTConfig) -> None:
    """Each row of a batch has the logits that it has alone."""
    model, ids = shared(config), text(config)
    batched = model(ids)
    for row in range(len(ids)):
        close(model(ids[row : row + 1]), batched[row : row + 1])


@torch.no_grad()
def token_by_token(config: GPTConfig) -> None:
    """Decoding token by token equals one pass; a cache without a maximum length also reads some tokens in a chunk."""
    model, ids = shared(config), text(config)
    expected = model(ids)
    for max_length, counts in ((TOKENS, [1] * TOKENS), (None, [1, 1, 7, 1, 1])):
        close(feed(model, ids, model.new_cache(len(ids), max_length), counts), expected)


@torch.no_grad()
def any_chunking(config: GPTConfig, chunkings: Iterable[list[int]] = ([3, 1, 7], [6, 6, 1, 1], [1, 13])) -> None:
    """Reading in chunks of any length equals one pass; one cache is reset and used again for all splits."""
    model, ids = shared(config), text(config)
    expected = model(ids)
    cache = model.new_cache(len(ids), TOKENS)
    for counts in chunkings:
        cache.reset()
        close(feed(model, ids, cache, counts), expected)


@torch.no_grad()
def ragged_rows(config: GPTConfig) -> None:
    """Left-padded rows equal each row alone, in one pass, in chunks (some consist of padding) and token by token.

    From the 13th token on, every row has at least three tokens that are not padding; the rest is read in one chunk.
    """
    model, ids = shared(config), text(config)
    pads = [0, 4, 9]
    padding = torch.tensor(pads)
    rows = [model(ids[row : row + 1, pad:]) for row, pad in enumerate(pads)]

    def check(actual: Tensor) -> None:
        assert actual.isfinite().all()
        for row, pad in enumerate(pads):
            close(actual[row : row + 1, pad:], rows[row])

    check(model(ids, padding=padding))
    for counts in ([], [2, 4, 1, 1], [12], [1] * 12):
        check(feed(model, ids, model.new_cache(len(ids), TOKENS), counts, padding))


@torch.no_grad()
def rows_move(config: GPTConfig) -> None:
    """After reorder and expand the cache continues as if its rows had been computed in that order."""
    model, ids = shared(config), text(config)
    for cut in (3, 12):
        cache = model.new_cache(len(ids), TOKENS)
        feed(model, ids[:, :cut], cache, [1, 1])
        order = torch.tensor([2, 0, 2, 1])
        cache.reorder(order)
        cache.expand(2)
        moved = ids[order.repeat_interleave(2)]
        moved[:, cut:] = text(config, len(moved), TOKENS - cut, seed=9)
        close(feed(model, moved[:, cut:], cache, [1, 1, 1]), model(moved)[:, cut:])


@torch.no_grad()
def one_graph_for_all_steps(config: GPTConfig) -> None:
    """The length of a cache may be a tensor, so that all decoding steps share one compiled graph."""
    model, ids = shared(config), text(config)
    cache = model.new_cache(len(ids), TOKENS)
    start = feed(model, ids[:, :6], cache, [])
    cache.length = torch.tensor(cache.length)
    steps = [model(ids[:, i : i + 1], cache=cache) for i in range(6, 15)]  # windows of 5 and 7 wrap
    close(torch.cat([start, *steps], dim=1), model(ids)[:, :15])


@torch.no_grad()
def packed_documents_are_separate(config: GPTConfig) -> None:
    """Packed documents have the logits of separate ones, or the attention refuses packing."""
    model, ids = shared(config), text(config, rows=2)
    documents = torch.tensor([[3] * 5 + [4] + [3] * (TOKENS - 6), [0] * (TOKENS - 4) + [1] * 4])
    if not all(layer.attention.component.separates_documents for layer in config.layer_configs):
        with pytest.raises(ConfigError, match="cannot keep packed documents apart"):
            model(ids, documents=documents)
        return
    actual = model(ids, documents=documents)
    for row, lengths in enumerate(([5, 1, TOKENS - 6], [TOKENS - 4, 4])):
        whole = ids[row : row + 1].split(lengths, dim=1)
        close(actual[row : row + 1], torch.cat([model(document) for document in whole], dim=1))


def every_parameter_learns(config: GPTConfig) -> None:
    """Every parameter has a finite gradient that is not zero, and the loss is the sum of its terms."""
    model, ids = build(config).train(), text(config, rows=8)
    output = model(ids[:, :-1], ids[:, 1:])
    assert torch.equal(output.loss, torch.stack(list(output.parts.values())).sum())
    output.loss.backward()
    assert output.loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.count_nonzero(), f"the gradient of {name} is zero"


def recomputing_changes_nothing(config: GPTConfig) -> None:
    """Activation checkpointing gives bitwise equal gradients and buffers, also with dropout.

    All blocks are checkpointed here; tests/model/test_checkpointing.py tests checkpointing of some blocks.
    """
    ids, found = text(config, rows=4), []
    for every in (0, 1):
        model = build(config).train()
        model.checkpoint_activations(every)
        torch.manual_seed(3)
        model(ids[:, :-1], ids[:, 1:]).loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        buffers = [buffer.clone() for buffer in model.buffers()]
        model.after_optimizer_step()
        found.append([*gradients, *buffers, *model.buffers()])
    for tensors in found[1:]:
        for tensor, expected in zip(tensors, found[0], strict=True):
            assert torch.equal(tensor, expected)


def config_round_trips(config: GPTConfig) -> None:
    """A config is equal after JSON and after building a model, and its dict has every setting of each component."""
    written = config.to_dict()
    assert GPTConfig.from_dict(json.loads(json.dumps(written))) == config
    assert GPTModel(written).config == config
    for slot in ("attention", "ffn", "norm", "pos"):  # a later change of a default has no effect on a saved config
        assert set(written[slot]) == set(vars(getattr(config, slot)))


@torch.no_grad()
def saving_is_exact(config: GPTConfig) -> None:
    """A model with the saved weights of another has bitwise equal logits."""
    model, other, ids = shared(config), build(config, seed=8), text(config)
    assert not torch.equal(model(ids), other(ids))
    weights = safetensors.torch.load(safetensors.torch.save(model.state_dict()))
    other.load_state_dict(weights)
    assert torch.equal(model(ids), other(ids))


@torch.no_grad()
def half_precision(config: GPTConfig) -> None:
    """Logits in bfloat16 are close to those in float32 with the same rounded weights, also with a cache."""
    model = build(config, std=0.15).bfloat16()
    ids = text(config)
    expected = copy.deepcopy(model).float()(ids)
    cache = model.new_cache(len(ids), TOKENS)
    for actual in (model(ids), feed(model, ids, cache, [5, 1, 1])):
        assert actual.dtype == torch.bfloat16 and actual.isfinite().all()
        error = (actual.float() - expected).abs().mean() / expected.std()
        assert error < 0.05, f"differs by {error:.3f} standard deviations"
    assert cache.nbytes() == config.cache_bytes(len(ids), TOKENS, torch.bfloat16)


@torch.no_grad()
def meta_then_initialised(config: GPTConfig) -> None:
    """A model built on the meta device, then allocated and initialised, equals one that is built directly."""
    with torch.device("meta"):
        meta_model = GPTModel(config)
    assert all(tensor.is_meta for tensor in [*meta_model.parameters(), *meta_model.buffers()])
    meta_model.to_empty(device="cpu")
    for tensor in [*meta_model.parameters(), *meta_model.buffers()]:
        tensor.fill_(torch.nan)
    direct = GPTModel(config)
    for model in (meta_model, direct):
        torch.manual_seed(5)
        initialise(model, config)
    tensors = dict([*meta_model.named_parameters(), *meta_model.named_buffers()])
    for name, tensor in [*direct.named_parameters(), *direct.named_buffers()]:
        assert torch.equal(tensors[name], tensor), name
    ids = text(config)
    assert torch.equal(meta_model.eval()(ids), direct.eval()(ids))


@torch.no_grad()
def bytes_as_predicted(config: GPTConfig) -> None:
    """Predicted, reported and allocated bytes agree before and after the cache is filled."""
    model, ids = shared(config), text(config)
    for tokens in (1, 4, TOKENS):
        for dtype in (torch.float32, torch.bfloat16):
            predicted = config.cache_bytes(len(ids), tokens, dtype)
            cache = model.new_cache(len(ids), tokens, dtype)
            assert cache.nbytes() == allocated(cache) == predicted
    cache = model.new_cache(len(ids), TOKENS)
    feed(model, ids, cache, [TOKENS - 1])
    assert cache.nbytes() == allocated(cache) == config.cache_bytes(len(ids), TOKENS)


def allocated(cache: ModelCache) -> int:
    """Return the bytes of the distinct storages of all tensors in the attributes of the layers."""
    storages, found = {}, list[object](cache.layers)
    while found:
        value = found.pop()
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, list):
            found += value
        elif isinstance(value, LayerCache):
            found += vars(value).values()
    return sum(storages.values())


def written_in_place(config: GPTConfig) -> None:
    """A cache is not reallocated within its capacity."""
    model, ids = shared(config), text(config)
    cache = model.new_cache(len(ids), TOKENS)
    addresses = [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors]
    for chunk in ids.split([4, 1, 1, 9, 1, 1, 1, 1, 1], dim=1):
        model(chunk, cache=cache)
        assert [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors] == addresses


def no_graph_is_kept(config: GPTConfig) -> None:
    """The cache keeps no autograd graph, even without ``torch.no_grad``."""
    model, ids = shared(config), text(config)
    cache = model.new_cache(len(ids), TOKENS)
    for chunk in ids.split(7, dim=1):
        model(chunk, cache=cache)
    for layer in cache.layers:
        assert not any(tensor.requires_grad for tensor in layer.tensors)


@torch.no_grad()
def growing_at_most_doubles(config: GPTConfig) -> None:
    """A cache without a maximum length has at most twice as many rows as tokens, or 64."""
    model = shared(config)
    cache = model.new_cache(1)
    if config.pos.component.extrapolates:
        for _ in range(3):
            feed(model, text(config, 1, 50), cache, [])
    for layer in cache.layers:
        layer = layer.inner if isinstance(layer, ConvolutionCache) else layer
        if isinstance(layer, TokenCache):
            assert layer.capacity <= (layer.window or max(64, 2 * int(cache.length)))


@torch.no_grad()
def compiles_whole(config: GPTConfig, backend: str = "eager") -> None:
    """A model compiled with fullgraph=True equals the eager one; the text is short, since loops are unrolled."""
    model, ids = shared(config), text(config, tokens=10)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    expected = model(ids)
    close(compiled(ids), expected)


def probes_find_what_follows_from_the_config(config: GPTConfig) -> None:
    """The probes of ``modular_gpt.comparison.diagnostics`` pass that no other law covers."""
    torch.manual_seed(0)
    model = GPTModel(config)
    for name, probe in PROBES.items():
        finding = probe(model) if name not in COVERED else None
        assert finding is None or finding.passed, f"{name}: {finding}"


Law = Callable[[GPTConfig], None]
LAWS: list[Law] = [
    causal,
    rows_are_independent,
    token_by_token,
    any_chunking,
    ragged_rows,
    packed_documents_are_separate,
    rows_move,
    one_graph_for_all_steps,
    every_parameter_learns,
    recomputing_changes_nothing,
    config_round_trips,
    saving_is_exact,
    half_precision,
    meta_then_initialised,
    bytes_as_predicted,
    written_in_place,
    no_graph_is_kept,
    growing_at_most_doubles,
    probes_find_what_follows_from_the_config,
]
SLOW_LAWS: list[Law] = [compiles_whole]
