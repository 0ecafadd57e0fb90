"""Initialise components from the weights of other implementations: regrouped heads, low-rank factors, biases."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from modular_gpt.core.weight_transfer import AttentionWeights, TransferReport

CONSTANT = 8192.0  # much larger than projected activations, so that it dominates the norm of a vector with it

CARRIED = "a constant that makes the norm the identity"


class HeadProjections(Protocol):
    """An attention whose heads are computed by four linear layers."""

    @property
    def query(self) -> nn.Linear: ...

    @property
    def key(self) -> nn.Linear: ...

    @property
    def value(self) -> nn.Linear: ...

    @property
    def out(self) -> nn.Linear: ...


def fill(module: nn.Module, name: str, weight: Tensor, bias: Tensor | None, how: str = "") -> TransferReport:
    """Copy a weight (out, in) and a bias (out,) into the linear layer ``name`` of ``module``.

    A missing bias becomes zero, and a bias is left out if the layer has none. Returns the derivation of the weight and
    the bias, by name.

    how: the derivation to report
    """
    linear = getattr(module, name)
    linear.weight.copy_(weight)
    if linear.bias is None:
        lost = "" if bias is None else "its bias left out"
        return {f"{name}.weight": ", ".join(filter(None, [how, lost]))}
    linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)
    return {f"{name}.weight": how, f"{name}.bias": "zero, as there was none" if bias is None else how}


def head_weights(attention: HeadProjections, width: int, value_width: int, scale: float) -> AttentionWeights:
    """Canonical weights of an attention.

    width: width of a head's queries and keys; value_width: width of its values; scale: factor on the scores
    """

    def heads(tensor: Tensor) -> Tensor:
        out: Tensor = tensor.detach().unflatten(0, (-1, width))
        return out

    def values(tensor: Tensor) -> Tensor:
        out: Tensor = tensor.detach().unflatten(0, (-1, value_width))
        return out

    return AttentionWeights(
        query=heads(attention.query.weight),
        key=heads(attention.key.weight),
        value=values(attention.value.weight),
        out=attention.out.weight.detach().unflatten(1, (-1, value_width)),
        query_bias=if_given(heads, attention.query.bias),
        key_bias=if_given(heads, attention.key.bias),
        value_bias=if_given(values, attention.value.bias),
        out_bias=if_given(Tensor.detach, attention.out.bias),
        scale=scale,
    )


def init_heads(attention: nn.Module, source: AttentionWeights, present: AttentionWeights) -> TransferReport:
    """Initialise the linear layers query, key, value and out of ``attention`` from ``source``.

    Returns the derivation of each parameter, by name; {} if widths differ or key heads cannot be regrouped.

    present: the canonical weights of ``attention`` before, for its shapes and scale
    """
    count = len(present.key)
    fits = source.query.shape == present.query.shape and source.out.shape == present.out.shape
    if not fits or (len(source.key) % count and count % len(source.key)):
        return {}
    scale = source.scale / present.scale
    how = _regrouping(len(source.key), count)
    moved = source.value_bias is not None and present.value_bias is None

    def scaled(heads: Tensor) -> Tensor:
        return (heads * scale).flatten(0, 1)

    def regrouped(heads: Tensor) -> Tensor:
        return regroup(heads, count).flatten(0, 1)

    query_bias, key_bias = if_given(scaled, source.query_bias), if_given(regrouped, source.key_bias)
    value_bias = None if moved else if_given(regrouped, source.value_bias)
    return {
        **fill(attention, "query", scaled(source.query), query_bias, f"times {scale:.4g}" if scale != 1 else ""),
        **fill(attention, "key", regrouped(source.key), key_bias, how),
        **fill(attention, "value", regrouped(source.value), value_bias, how),
        **fill_out(attention, source, moved),
    }


def if_given(function: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    """``function(tensor)``; None for None."""
    return None if tensor is None else function(tensor)


def regroup(heads: Tensor, count: int) -> Tensor:
    """Regroup key or value heads (K, ...) into ``count`` heads: means of neighbouring heads, or repeated heads.

    https://arxiv.org/abs/2305.13245, section 2.1
    """
    if len(heads) == count:
        return heads
    if len(heads) > count:
        means: Tensor = heads.unflatten(0, (count, -1)).mean(1)
        return means
    return heads.repeat_interleave(count // len(heads), dim=0)


def _regrouping(before: int, after: int) -> str:
    if before == after:
        return ""
    return f"means of {before // after} heads" if before > after else f"each head {after // before} times"


def fill_out(attention: nn.Module, source: AttentionWeights, moved: bool) -> TransferReport:
    """Initialise the linear layer ``out`` of ``attention``. Returns the derivation of its parameters, by name.

    moved: fold the bias of the values into the bias of ``out``; this is exact, because attention weights sum to 1
    """
    weight, bias = source.out.flatten(1), source.out_bias
    if not moved or source.value_bias is None:
        return fill(attention, "out", weight, bias)
    values = torch.einsum("dhm,hm->d", source.out, regroup(source.value_bias, source.out.shape[1]))
    report = fill(attention, "out", weight, values if bias is None else values + bias)
    return report | ({"out.bias": "with that of the values"} if "out.bias" in report else {})


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a matrix (out, in) by a product up (out, r) @ down (r, in), r <= rank, by SVD."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]).to(matrix.dtype), right[:rank].to(matrix.dtype)


def carry_past(norm: nn.Module, down: nn.Linear, width: int) -> int:
    """Make a norm over the first ``width`` outputs of ``down`` approximately the identity, if possible.

    A norm divides by the magnitude of its input. The bias makes the last of these outputs a large constant, so that the
    magnitude hardly depends on the other outputs, and the weight of the norm is scaled to undo the division.

    Returns the number of outputs that remain free: ``width``, or ``width - 1`` with the constant.
    """
    probe = down.weight.new_zeros(2, width)
    probe[:, -1], probe[0, 0], probe[1, 0] = CONSTANT, 1.0, -2.0
    normed = norm(probe)
    if torch.equal(normed, probe):
        return width
    factor, weight = normed[0, 0], getattr(norm, "weight", None)
    proportional = torch.allclose(normed[:, :-1] / factor, probe[:, :-1], rtol=1e-2, atol=1e-2)
    if width < 2 or down.bias is None or weight is None or not proportional:
        return width
    weight.div_(factor)
    down.weight[width - 1] = 0.0
    down.bias[width - 1] = CONSTANT
    return width - 1
