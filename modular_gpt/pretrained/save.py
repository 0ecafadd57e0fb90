"""GPTModel into folders that ``transformers`` loads, where a published kind of model is exactly the same."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modular_gpt.core.atomic_files import MARK, write_text
from modular_gpt.core.errors import CheckpointError, UserError
from modular_gpt.core.registry import encode, entries
from modular_gpt.core.validation import one_of
from modular_gpt.model import GPTModel
from modular_gpt.model.config import SLOTS, GPTConfig, LayerConfig
from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.hub import CONFIG
from modular_gpt.pretrained.load import own_tensors
from modular_gpt.pretrained.tensor_map import expand
from modular_gpt.pretrained.weight_files import WEIGHTS, listed

# Settings that say nothing about what a trained model computes: how it began, how it trains, by which kernels,
# and those that are compared part by part.
_NOT_COMPUTED = {"init", "init_std", "init_residual", "init_head", "dropout", "bias", "layers", "final_norm", *SLOTS}
_NOT_COMPUTED_IN_PARTS = {"name", "dropout", "backend"}


def save_pretrained(model: GPTModel, path: str | Path, format: str = "hf", eos_token_id: int | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` as ``transformers`` writes and reads them.

    path: a folder, made where there is none; other files in it stay
    format: hf
    eos_token_id: the id that ends a text, which transformers' generation asks for; the model itself has no such thing

    Raises:
        CheckpointError: no published kind of model is the same as this one, or the folder cannot be written.
        ConfigError: the format is unknown.
    """
    one_of(format, ("hf",), "format")
    family = family_of(model.config)
    settings = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": None,
        **_written(family, model.config),
    }
    _write(Path(path), settings, their_tensors(family, model))


def family_of(config: GPTConfig) -> Family:
    """The published kind of model that computes the same.

    Raises:
        CheckpointError: there is none; names what the nearest one differs in.
    """
    apart: list[tuple[bool, list[str], str]] = []
    for family in FAMILIES.values():
        if family.write is None:
            continue
        other_parts = _other_parts(family, config)
        differing = other_parts or _other_settings(family, config)
        if not differing:
            return family
        apart.append((bool(other_parts), differing, family.model_type))
    _, differing, nearest = min(apart, key=lambda each: (each[0], len(each[1])))
    raise CheckpointError(
        f"this model cannot be written for transformers: the nearest kind, {nearest}, is without {listed(differing)}; "
        "save it as a checkpoint of this program"
    )


def their_tensors(family: Family, model: GPTModel) -> dict[str, Tensor]:
    """Their tensors by name, made from ours."""
    ours = {name: tensor.detach() for name, tensor in own_tensors(model).items()}
    links = list(expand(family.rules, ours, model.config.n_layers, model.config.n_heads))
    assert set(ours) == {name for link in links for name in link.ours}, "a rule is missing"
    return {link.theirs: link.joined(ours).cpu().contiguous() for link in links}


def _written(family: Family, config: GPTConfig) -> dict[str, Any]:
    assert family.write is not None
    return family.write(config, _resolved(config))


def _resolved(config: GPTConfig) -> list[LayerConfig]:
    return [layer.resolved(config.dims) for layer in config.layer_configs]


def _other_parts(family: Family, config: GPTConfig) -> list[str]:
    """The parts of a model that the family has another kind of."""
    theirs = {slot: entries(slot)[name].component for slot, name in family.parts.items()}
    chosen = [(slot, getattr(layer, slot)) for slot in SLOTS for layer in config.layer_configs]
    return list(dict.fromkeys(f"{slot}={part.name}" for slot, part in chosen if part.component is not theirs[slot]))


def _other_settings(family: Family, config: GPTConfig) -> list[str]:
    """What the family, which has the same parts, cannot say about a model."""
    try:
        settings = {**family.defaults, **_written(family, config)}
        back = GPTConfig.from_dict(family.read(settings))
    except UserError as error:
        return [f"a setting ({error})"]
    return list(_differences(config, back))


def _differences(config: GPTConfig, other: GPTConfig) -> Iterator[str]:
    """Settings of the first that the second has another value of, each once."""
    if config.has_final_norm != other.has_final_norm:
        yield f"final_norm={config.has_final_norm}"
    for setting in fields(config):
        value = getattr(config, setting.name)
        if setting.name not in _NOT_COMPUTED and not _equal(value, getattr(other, setting.name)):
            yield f"{setting.name}={value}"
    said = set()
    for layer, counterpart in zip(_resolved(config), _resolved(other), strict=True):
        for slot in SLOTS:
            values, others = encode(getattr(layer, slot)), encode(getattr(counterpart, slot))
            for name, value in values.items():
                sentence = f"{slot}.{name}={value}"
                if name in _NOT_COMPUTED_IN_PARTS or _equal(value, others[name]) or sentence in said:
                    continue
                said.add(sentence)
                yield sentence


def _equal(a: Any, b: Any) -> bool:
    """Whether two settings are the same; numbers up to the rounding of different ways to compute them."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def _write(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    temporary = folder / f"{WEIGHTS}{MARK}{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / WEIGHTS)
        write_text(folder / CONFIG, json.dumps(settings, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise CheckpointError(
            f"cannot write the model to '{folder}' ({error}); it needs {size:,} bytes in a folder that can be written"
        ) from error
    finally:
        if folder.is_dir():
            temporary.unlink(missing_ok=True)
