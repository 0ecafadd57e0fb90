"""Saves a GPTModel as a model of a published family, if one computes exactly the same."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from modular_gpt.core.errors import CheckpointError, ConfigError, unknown
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.validation import one_of
from modular_gpt.mapping.tensor_map import expand
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import saved_tensors
from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.family import Family
from modular_gpt.weights import OWN_TYPE, listed, write_files


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
        if missing := FAMILIES[model_type].compared(config).missing:
            raise CheckpointError(
                f"models of model_type={model_type} are without {listed(missing)}; leave out model_type to write the"
                " first family that computes the same, if there is one"
            )
        return FAMILIES[model_type]
    compared: list[tuple[tuple[bool, int, bool], Family, list[str]]] = []
    for family in (FAMILIES[name] for name in among):
        comparison = family.compared(config)
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
    our_tensors = {name: tensor.detach() for name, tensor in saved_tensors(model).items()}
    pairs = list(expand(family.rules, our_tensors, model.config))
    assert set(our_tensors) == {name for pair in pairs for name in pair.our_names}, "a mapping is missing"
    learned = {pair.hf_name: pair.joined(our_tensors).cpu().contiguous() for pair in pairs}
    dtype = model.embedding.weight.dtype
    return learned | {name: table.to(dtype) for name, table in family.tables(model.config).items()}
