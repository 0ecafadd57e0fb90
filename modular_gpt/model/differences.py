"""Differences between two configs that change the logits of a trained model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from modular_gpt.core.registry import encode
from modular_gpt.model.config import SLOTS, BlockConfig, GPTConfig

_BLOCK = ("topology", "residual_multiplier", "residual_weights")  # settings of each layer's block
# Settings that change no logits of a trained model (initialisation, training, kernels), and those that are compared
# layer by layer.
_NOT_COMPARED = {"init", "init_std", "init_residual", "init_head", "init_by_name", "dropout", "bias", "layers"}
_NOT_COMPARED |= {"final_norm", *_BLOCK, *SLOTS}
_NOT_COMPARED_IN_COMPONENTS = {"name", "dropout", "backend", "balance", "balance_weight", "z_weight", "bias_step"}


def other_components(config: GPTConfig, known: Sequence[Sequence[BlockConfig]]) -> list[str]:
    """The components, as ``slot=name``, that none of the ``known`` layers of the same index has.

    known: alternatives for each layer; repeated if the model has more layers
    """
    found = []
    for slot in SLOTS:
        for index, layer in enumerate(config.layer_configs):
            if slot == "pos" and not layer.uses_positions(config.dims):
                continue
            chosen = getattr(layer, slot)
            if chosen.component not in {getattr(other, slot).component for other in known[index % len(known)]}:
                found.append(f"{slot}={chosen.name}")
    return list(dict.fromkeys(found))


def differences(config: GPTConfig, other: GPTConfig) -> Iterator[str]:
    """Settings of ``config`` that differ in ``other``, as ``name=value`` without duplicates."""
    if config.has_final_norm != other.has_final_norm:
        yield f"final_norm={config.has_final_norm}"
    for setting in fields(config):
        value = getattr(config, setting.name)
        if setting.name not in _NOT_COMPARED and not _equal(value, getattr(other, setting.name)):
            yield f"{setting.name}={value}"
    named = set()
    for layer, counterpart in zip(config.layer_configs, other.layer_configs, strict=True):
        for difference in _layer_differences(config, layer, counterpart):
            if difference not in named:
                named.add(difference)
                yield difference


def _layer_differences(config: GPTConfig, layer: BlockConfig, other: BlockConfig) -> Iterator[str]:
    for name in _BLOCK:
        value = getattr(layer, name)
        if not _equal(value, getattr(other, name)):
            yield f"{name}={value}" if value == getattr(config, name) else f"block.{name}={value}"
    for slot in SLOTS:
        if slot == "pos" and not layer.uses_positions(config.dims):
            continue
        values, others = encode(getattr(layer, slot)), encode(getattr(other, slot))
        only_speed = layer.attention_class.only_speed if slot == "attention" else ()
        for name, value in values.items():
            if name not in {*_NOT_COMPARED_IN_COMPONENTS, *only_speed} and not _equal(value, others[name]):
                yield f"{slot}.{name}={value}"


def _equal(a: Any, b: Any) -> bool:
    """Whether two settings are equal; floating-point numbers up to rounding errors."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    out: bool = a == b
    return out
