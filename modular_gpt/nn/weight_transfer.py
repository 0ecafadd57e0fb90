"""Initialise components from the weights of other implementations: regrouped heads, low-rank factors, biases."""

from typing import Any

import torch
from torch import Tensor, nn

from modular_gpt.core.weight_transfer import AttentionWeights, FeedForwardWeights, TransferReport

CONSTANT = 8192.0  # large beside what attention projects, so that the size of both together is the size of this

CARRIED = "a constant that makes the norm the identity"


def fill(part: nn.Module, name: str, weight: Tensor, bias: Tensor | None, how: str = "") -> TransferReport:
    """Copy a weight (out, in) and a bias (out,) into linear layer ``name``; returns how each was derived, by name."""
    linear = getattr(part, name)
    linear.weight.copy_(weight)
    if linear.bias is None:
        lost = "" if bias is None else "its bias left out"
        return {f"{name}.weight": ", ".join(filter(None, [how, lost]))}
    linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)
    return {f"{name}.weight": how, f"{name}.bias": "zero, as there was none" if bias is None else how}


def head_weights(part: Any, width: int, scale: float) -> AttentionWeights:
    """Canonical weights of an attention with linear layers query, key, value and out and heads of one ``width``."""

    def heads(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.detach().unflatten(0, (-1, width))

    return AttentionWeights(
        query=heads(part.query.weight),
        key=heads(part.key.weight),
        value=heads(part.value.weight),
        out=part.out.weight.detach().unflatten(1, (-1, width)),
        query_bias=heads(part.query.bias),
        key_bias=heads(part.key.bias),
        value_bias=heads(part.value.bias),
        out_bias=None if part.out.bias is None else part.out.bias.detach(),
        scale=scale,
    )


def init_heads(part: Any, source: AttentionWeights, present: AttentionWeights) -> TransferReport:
    """Fill linear layers query, key, value and out, whose weights so far are ``present``."""
    count = len(present.key)
    fits = source.query.shape == present.query.shape and source.out.shape == present.out.shape
    if not fits or (len(source.key) % count and count % len(source.key)):
        return {}
    scale = source.scale / present.scale
    how = _regrouping(len(source.key), count)
    value_bias = regroup(source.value_bias, count)
    moved = value_bias is not None and part.value.bias is None
    return {
        **fill(part, "query", *_scaled(source, scale), f"times {scale:.4g}" if scale != 1 else ""),
        **fill(part, "key", _rows(regroup(source.key, count)), _rows(regroup(source.key_bias, count)), how),
        **fill(part, "value", _rows(regroup(source.value, count)), None if moved else _rows(value_bias), how),
        **fill_out(part, source, moved),
    }


def _scaled(source: AttentionWeights, scale: float) -> tuple[Any, Any]:
    return _rows(source.query * scale), None if source.query_bias is None else _rows(source.query_bias * scale)


def _rows(heads: Tensor | None) -> Any:
    """(heads, width, ...) -> (heads * width, ...)"""
    return None if heads is None else heads.flatten(0, 1)


def regroup(heads: Tensor | None, count: int) -> Any:
    """Key or value heads (K, ...) as ``count`` heads: means of neighbours, or each several times.

    https://arxiv.org/abs/2305.13245, section 2.1
    """
    if heads is None or len(heads) == count:
        return heads
    if len(heads) > count:
        return heads.unflatten(0, (count, -1)).mean(1)
    return heads.repeat_interleave(count // len(heads), dim=0)


def _regrouping(before: int, after: int) -> str:
    if before == after:
        return ""
    return f"means of {before // after} heads" if before > after else f"each head {after // before} times"


def fill_out(part: nn.Module, source: AttentionWeights, moved: bool) -> TransferReport:
    """Fill the linear layer ``out``; the bias of the values moves into its own: weights that sum to 1 pass it on."""
    weight, bias = source.out.flatten(1), source.out_bias
    if not moved or source.value_bias is None:
        return fill(part, "out", weight, bias)
    values = torch.einsum("dhm,hm->d", source.out, regroup(source.value_bias, source.out.shape[1]))
    made = fill(part, "out", weight, values if bias is None else values + bias)
    return made | ({"out.bias": "with that of the values"} if "out.bias" in made else {})


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up (out, r) and down (r, in), whose product comes nearest to a matrix (out, in), with r <= rank."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]).to(matrix.dtype), right[:rank].to(matrix.dtype)


def carry_past(norm: nn.Module, down: nn.Linear, width: int) -> int:
    """Make a norm over the first ``width`` outputs of ``down`` hardly more than the identity, where that is possible.

    A norm divides by the size of its input. The last of the outputs is made a large constant, by its bias, so that
    this size hardly depends on the others, and the norm's weight is set to undo the division.
    Returns how many outputs are left for other things.
    """
    probe = down.weight.new_zeros(2, width)
    probe[:, -1], probe[0, 0], probe[1, 0] = CONSTANT, 1.0, -2.0
    through = norm(probe)
    if torch.equal(through, probe):
        return width
    factor, weight = through[0, 0], getattr(norm, "weight", None)
    proportional = torch.allclose(through[:, :-1] / factor, probe[:, :-1], rtol=1e-2, atol=1e-2)
    if width < 2 or down.bias is None or weight is None or not proportional:
        return width
    weight.div_(factor)
    down.weight[width - 1] = 0.0
    down.bias[width - 1] = CONSTANT
    return width - 1


def offer_of_dense(part: Any) -> FeedForwardWeights:
    """The offer of a feed-forward part with linear layers up, down and, perhaps, gate."""
    tensors = {name.removesuffix(".weight").replace(".", "_"): tensor for name, tensor in part.named_parameters()}
    return FeedForwardWeights(**{name: tensor.detach() for name, tensor in tensors.items()})


def adopt_dense(part: Any, source: FeedForwardWeights) -> TransferReport:
    """Fill those of the linear layers up, down and gate that the offer has in their size."""
    made: TransferReport = {}
    for name, linear in part.named_children():
        weight = getattr(source, name, None)
        if weight is not None and weight.shape == linear.weight.shape:
            made |= fill(part, name, weight, getattr(source, f"{name}_bias"))
    return made
