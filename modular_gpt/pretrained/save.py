"""Saves a GPTModel as a model of a published family, if one computes exactly the same."""

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from modular_gpt.core.atomic_files import temporary_name, write_problem, write_text
from modular_gpt.core.errors import CheckpointError, ConfigError, UserError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import encode
from modular_gpt.core.validation import one_of
from modular_gpt.model import GPTModel
from modular_gpt.model.config import SLOTS, BlockConfig, GPTConfig
from modular_gpt.model.materialize import saved_tensors
from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.hub import CONFIG_FILE
from modular_gpt.pretrained.own_type import OWN_TYPE
from modular_gpt.pretrained.tensor_map import expand
from modular_gpt.pretrained.weight_files import WEIGHTS, as_os_error, listed

GENERATION = "generation_config.json"

# Settings that change no logits of a trained model (initialisation, training, kernels), and those that are compared
# component by component.
_NOT_COMPUTED = {"init", "init_std", "init_residual", "init_head", "dropout", "bias", "layers", "final_norm", *SLOTS}
_BLOCK = ("topology", "residual_multiplier", "residual_weights")  # of each layer
_NOT_COMPUTED |= {*_BLOCK}
_NOT_COMPUTED |= {"init_by_name"}
_NOT_COMPUTED_IN_COMPONENTS = {"name", "dropout", "backend", "balance", "balance_weight", "z_weight", "bias_step"}


def as_published(model: GPTModel, among: Iterable[str]) -> tuple[PlainDict, dict[str, Tensor]]:
    """The config.json and the tensors of a model as one of some published families, by the names of transformers.

    Raises:
        CheckpointError: none of them computes the same.
    """
    family = family_of(model.config, among=among)
    return {"model_type": family.model_type, **family.to_hf(model.config)}, hf_tensors(family, model)


def save_pretrained(
    model: GPTModel,
    path: str | Path,
    format: str = "hf",
    eos_token_id: int | list[int] | None = None,
    model_type: str | None = None,
) -> None:
    """Save a model as one of a published family, in a folder that ``transformers`` loads.

    path: a folder, created if missing; other files in it are kept
    format: hf, the only choice
    eos_token_id: id or ids that end a text, for generation with transformers
    model_type: the family, such as granite; None: the first one that computes the same

    Raises:
        CheckpointError: no published family, or not the one of ``model_type``, computes the same as this model, or the
            folder cannot be written.
        ConfigError: the format or the family is unknown.
    """
    one_of(format, ("hf",), "format")
    family = family_of(model.config, model_type)
    settings = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": None,
        **family.to_hf(model.config),
    }
    write_files(Path(path), settings, hf_tensors(family, model), eos_token_id)


def family_of(config: GPTConfig, model_type: str | None = None, among: Iterable[str] = FAMILIES) -> Family:
    """Find the published family that computes the same as a model with this config.

    model_type: the family, such as granite; None: the first one ``among`` these that computes the same

    Raises:
        CheckpointError: there is none; the message names the closest family and the settings that it lacks.
        ConfigError: there is no family of this ``model_type``.
    """
    if model_type is not None:
        if model_type not in FAMILIES:
            raise ConfigError(unknown("model_type", model_type, FAMILIES))
        if missing := _compared(FAMILIES[model_type], config).missing:
            raise CheckpointError(
                f"models of model_type={model_type} are without {listed(missing)}; leave out model_type to write the"
                " first family that computes the same, if there is one"
            )
        return FAMILIES[model_type]
    compared: list[tuple[tuple[bool, int, bool], Family, list[str]]] = []
    for family in (FAMILIES[name] for name in among):
        comparison = _compared(family, config)
        if not comparison.missing:
            return family
        compared.append((comparison.distance, family, comparison.missing))
    _, family, missing = min(compared, key=lambda row: row[0])
    raise CheckpointError(
        f"no published family computes the same as this model: the nearest one, {family.model_type}, is without "
        f"{listed(missing)}; use format={OWN_TYPE}"
    )


def hf_tensors(family: Family, model: GPTModel) -> dict[str, Tensor]:
    """Convert the tensors of a model to those of the family's files, by name."""
    ours = {name: tensor.detach() for name, tensor in saved_tensors(model).items()}
    pairs = list(expand(family.rules, ours, model.config))
    assert set(ours) == {name for pair in pairs for name in pair.our_names}, "a mapping is missing"
    learned = {pair.hf_name: pair.joined(ours).cpu().contiguous() for pair in pairs}
    dtype = model.embedding.weight.dtype
    return learned | {name: table.to(dtype) for name, table in family.tables(model.config).items()}


class Comparison(NamedTuple):
    """The settings of a model that a family cannot express, as ``name=value``, and a distance to sort families by."""

    missing: list[str]
    distance: tuple[bool, int, bool]


def _compared(family: Family, config: GPTConfig) -> Comparison:
    """Compare a model with what is read back from the family's keys for it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dropout, which is not compared
            back = family.config(family.to_hf(config))
    except UserError as error:
        others = _other_components(config, family.usual_layers)
        missing = others or [f"a setting ({error})"]
        return Comparison(missing, (bool(others), len(missing), True))
    others = _other_components(config, [[layer] for layer in back.layer_configs])
    missing = others or list(_differences(config, back))
    return Comparison(missing, (bool(others), len(missing), False))


def _other_components(config: GPTConfig, known: Sequence[Sequence[BlockConfig]]) -> list[str]:
    """The components of each layer that are in none of the ``known`` layers of this index, as ``slot=name``."""
    found = []
    for slot in SLOTS:
        for index, layer in enumerate(config.layer_configs):
            if slot == "pos" and not layer.uses_positions(config.dims):
                continue
            chosen = getattr(layer, slot)
            if chosen.component not in {getattr(other, slot).component for other in known[index % len(known)]}:
                found.append(f"{slot}={chosen.name}")
    return list(dict.fromkeys(found))


def _differences(config: GPTConfig, other: GPTConfig) -> Iterator[str]:
    """Settings of ``config`` that differ in ``other``, as ``name=value`` without duplicates."""
    if config.has_final_norm != other.has_final_norm:
        yield f"final_norm={config.has_final_norm}"
    for setting in fields(config):
        value = getattr(config, setting.name)
        if setting.name not in _NOT_COMPUTED and not _equal(value, getattr(other, setting.name)):
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
            if name not in {*_NOT_COMPUTED_IN_COMPONENTS, *only_speed} and not _equal(value, others[name]):
                yield f"{slot}.{name}={value}"


def _equal(a: Any, b: Any) -> bool:
    """Whether two settings are equal; floating-point numbers up to rounding errors."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    out: bool = a == b
    return out


def write_files(
    folder: Path,
    settings: PlainMapping,
    tensors: Mapping[str, Tensor],
    eos_token_id: int | list[int] | None = None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors, each atomically.

    Raises:
        CheckpointError: the folder cannot be written; the message has the number of bytes needed.
    """
    generation = {"eos_token_id": eos_token_id, "pad_token_id": None, "bos_token_id": None}
    temporary = temporary_name(folder / WEIGHTS)  # a directory, because save_file follows symbolic links
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        save_file(dict(tensors), temporary / WEIGHTS, metadata={"format": "pt"})
        os.replace(temporary / WEIGHTS, folder / WEIGHTS)
        write_text(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
        write_text(folder / CONFIG_FILE, json.dumps(dict(settings), indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        reason, remedy = write_problem(as_os_error(error), folder)
        raise CheckpointError(
            f"cannot write the model to '{folder}' ({reason}; it needs {size:,} bytes): {remedy}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
