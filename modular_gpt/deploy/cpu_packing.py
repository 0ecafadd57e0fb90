"""Packing of the weights of linear layers for fast inference on a CPU: oneDNN's blocked layout, or int8.

oneDNN multiplies faster if a weight has the blocked memory layout of its kernels; packing converts each weight once
instead of at every call. In int8, weights are rounded to multiples of a scale per output channel; they have half the
bytes of bfloat16, and memory traffic bounds the speed of decoding. Each ``nn.Linear`` of the model, and each matrix
product of experts, is replaced by an equivalent with packed weights. A packed model is for inference only.
"""

from collections.abc import Callable
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.model import GPTModel
from modular_gpt.nn.ffn.moe import GroupedProduct, MixtureOfExperts
from modular_gpt.nn.grouped_mm import spans
from modular_gpt.runtime.device import cpu_name

BLOCK = 32  # a row of an int8 weight is padded to a multiple of this: the kernel reads whole vectors
MAX_ROWS = 16  # of an input, above which it is faster to convert the weight to bfloat16; measured for 768 x 768
_INT8_MAX = 127
_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """x @ weight.T + bias with the weight in oneDNN's blocked layout: (..., in) -> (..., out)."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # plain attributes instead of buffers, since a tensor in blocked layout can neither be moved nor saved
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class PackedExperts:
    """Multiply rows, sorted by expert, by the packed matrix (out, in) of their expert: (M, in) -> (M, out)."""

    def __init__(self, weight: Tensor) -> None:
        """weight: (experts, out, in)"""
        self.packed = [torch.ops.mkldnn._reorder_linear_weight(matrix) for matrix in weight.detach()]
        self.out_features = weight.shape[1]

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.out_features)
        for group, start, end in spans(ends):
            out[start:end] = torch.ops.mkldnn._linear_pointwise(x[start:end], self.packed[group], None, "none", [], "")
        return out


class Int8Linear(nn.Module):
    """x @ (int8 weight * scale per row).T + bias, computed in bfloat16: (..., in) -> (..., out) in the dtype of x."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # plain attributes instead of buffers, so that module.to(dtype) leaves them as they are
        integers, self.scale = quantise_rows(weight.detach())
        self.weight = F.pad(integers, (0, -self.in_features % BLOCK))
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        product = _int8_product(_int8_rows(x.reshape(-1, self.in_features)), self.weight, self.scale)
        out: Tensor = product.view(*x.shape[:-1], self.out_features).to(x.dtype)
        return out if self.bias is None else out + self.bias

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ConfigError("int8 weights are for inference only: load the model again to train it")
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, int8"


class Int8Experts:
    """Multiply rows, sorted by expert, by the int8 matrix (out, in) of their expert: (M, in) -> (M, out)."""

    def __init__(self, weight: Tensor) -> None:
        """weight: (experts, out, in)"""
        integers, scale = quantise_rows(weight.detach().flatten(0, 1))
        self.weight = F.pad(integers, (0, -weight.shape[2] % BLOCK)).view(*weight.shape[:2], -1)
        self.scale = scale.view(weight.shape[:2])

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        out: Tensor = _grouped_int8(_int8_rows(x), self.weight, self.scale, ends)
        return out.to(x.dtype)


@torch.library.custom_op("modular_gpt::grouped_int8", mutates_args=())
def _grouped_int8(x: Tensor, weight: Tensor, scale: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[1])
    for group, start, end in spans(ends):
        out[start:end] = _int8_product(x[start:end], weight[group], scale[group])
    return out


@_grouped_int8.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _int8_rows(x: Tensor) -> Tensor:
    """Convert (M, in) to bfloat16 and pad the columns with zeros to a multiple of ``BLOCK``."""
    return F.pad(x.to(torch.bfloat16), (0, -x.shape[-1] % BLOCK)).contiguous()


def _int8_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """rows @ (weight * scale per row).T in bfloat16: (M, in) -> (M, out)."""
    if len(rows) <= MAX_ROWS:
        out: Tensor = torch.ops.aten._weight_int8pack_mm(rows, weight, scale)
        return out
    return F.linear(rows, weight.to(torch.bfloat16)) * scale


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight (out, in) to int8, with a scale per row (out,) in bfloat16.

    The error of an entry is at most half the scale of its row.
    """
    rows = weight.float()
    scale = (rows.abs().amax(1) / _INT8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = scale.to(torch.bfloat16)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    scale = torch.where(rounded.float() < scale, above, rounded)  # rounded up: 127 * scale reaches the largest entry
    return (rows / scale.float()[:, None]).round().to(torch.int8), scale


def can_pack(model: GPTModel) -> bool:
    """Whether ``pack`` supports ``model``: it is on a CPU with oneDNN, in float32 or bfloat16."""
    weight = model.embedding.weight
    return weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and weight.dtype in _DTYPES


def packing_pays(model: GPTModel, rows: int) -> bool:
    """Whether ``pack`` speeds up the decoding of ``rows`` texts, as measured by benchmarks/compiled.py.

    On Intel CPUs, a single row in float32 is multiplied faster by unpacked weights.
    """
    single = rows == 1 and model.embedding.weight.dtype == torch.float32
    return can_pack(model) and not (single and "Intel" in cpu_name())


def pack(model: GPTModel) -> GPTModel:
    """Pack every linear layer of ``model`` and its head in place; returns the model in evaluation mode.

    Raises:
        ConfigError: the model is not on a CPU with oneDNN, or is neither float32 nor bfloat16.
    """
    if not can_pack(model):
        raise ConfigError("packing=onednn is for float32 and bfloat16 models on a CPU with oneDNN: use packing=none")
    return _replace_products(model, PackedLinear, PackedExperts)


def pack_int8(model: GPTModel) -> GPTModel:
    """Quantise every linear layer of ``model`` and its head to int8 in place; returns the model in evaluation mode.

    Matrices of experts have a scale per expert and output channel. Embeddings, norms, and weights that other modules
    read directly keep their dtype, and so do routers, since rounding them would select other experts.

    Raises:
        ConfigError: the model is not on a CPU, or is neither float32 nor bfloat16.
    """
    weight = model.embedding.weight
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        raise ConfigError("packing=int8 is for float32 and bfloat16 models on a CPU: use packing=none")
    return _replace_products(model, Int8Linear, Int8Experts, keep=("router",))


def _replace_products(
    model: GPTModel,
    make_linear: Callable[[Tensor, Tensor | None], nn.Module],
    make_experts: Callable[[Tensor], GroupedProduct],
    keep: tuple[str, ...] = (),
) -> GPTModel:
    """Replace the linear layers, the head and the products of experts in place; layers named in ``keep`` stay."""
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            module.replace_products(make_experts)
    if model.head is None:  # a tied head gets a packed copy; the embedding keeps the plain weight for look-ups
        model.head = cast(nn.Linear, make_linear(model.embedding.weight, None))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            # not subclasses such as ReadLinear, whose weights other modules read
            if type(child) is nn.Linear and name not in keep:
                setattr(module, name, make_linear(child.weight, child.bias))
    return model


PACKINGS: dict[str, Callable[[GPTModel], GPTModel]] = {"none": lambda model: model, "onednn": pack, "int8": pack_int8}
