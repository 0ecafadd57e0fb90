"""Loads a published model into a GPTModel: converts its config, then copies each tensor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from modular_gpt.core.errors import CheckpointError, ConfigError, printable, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.mapping.tensor_map import TensorPair, expand
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import materialize, meta_model, saved_tensors
from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.wrappers import WRAPPERS, text_settings
from modular_gpt.weights import CONFIG_FILE, Source, Tensors, View, dequantising, language_model, listed, locate

HEAD, EMBEDDING = "lm_head.weight", "embedding.weight"
_LAYER_NUMBER = re.compile(r"\.(\d+)\.")  # the first number in the name of a tensor
QUANTISED = "quantization_config"
INVERSE_FREQUENCIES = r".*rotary_emb\.inv_freq"  # a table in older files, computed from the config


def load_pretrained(
    name_or_path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> GPTModel:
    """Load a published model, in evaluation mode.

    name_or_path: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, another name on the Hugging Face hub, or the
        folder of a model; the local cache is searched before the hub
    dtype: dtype of the parameters; None: that of the token embedding in the file
    device: device of the parameters; None: the CPU

    Raises:
        CheckpointError: there is no such model, its family is unknown, it is damaged, or tensors or settings are
            unknown, missing or of another shape.
        ConfigError: a setting in its config.json is out of range.
    """
    source = locate(name_or_path)
    family, given = read_family(source)
    with Tensors(source) as files:
        for view in family.views:
            files.apply(view)
        check_layers(given, family, files, source)
        model = _described(read_settings(source, family, given), files, source)
        pairs = match(family, model, files)
        return fill(model, pairs, files, dtype, torch.device(device or "cpu"))


def read_config(source: Source) -> tuple[Family, GPTConfig]:
    """Read the family of a published model and its config, converted to a GPTConfig."""
    family, given = read_family(source)
    return family, read_settings(source, family, given)


def read_family(source: Source) -> tuple[Family, PlainDict]:
    """Read the family of a published model and the content of its config.json.

    Raises:
        CheckpointError: the file is missing or damaged, its family is unknown, or the model is quantised.
    """
    given = source.json(CONFIG_FILE)
    if given is None:
        raise CheckpointError(f"{source.name!r} has no {CONFIG_FILE}; give the folder of a model")
    model_type = given.get("model_type")
    if model_type is None and "format" in given:
        raise CheckpointError(f"{source.name!r} is a checkpoint of this program, which modular_gpt.load_model opens")
    if model_type is None:
        raise CheckpointError(
            f"{CONFIG_FILE} of {source.name!r} has no model_type; there are: {', '.join(sorted(FAMILIES))}"
        )
    if not isinstance(model_type, str) or model_type not in (*FAMILIES, *WRAPPERS):
        reason = unknown("architecture", printable(str(model_type)), (*FAMILIES, *WRAPPERS))
        raise CheckpointError(f"{source.name!r}: {reason}")
    views: tuple[View, ...] = ()
    if model_type in WRAPPERS:
        quantised = {name: value for name, value in given.items() if name == QUANTISED}
        given, views = {**text_settings(source, given), **quantised}, (language_model,)
    family = FAMILIES[given["model_type"]]
    if given.get(QUANTISED):
        _check_quantisation(source, family, given[QUANTISED])
        given, views = {name: value for name, value in given.items() if name != QUANTISED}, (*views, dequantising)
    return replace(family, views=(*views, *family.views)), given


def _check_quantisation(source: Source, family: Family, quantisation: object) -> None:
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
    if method not in family.quantised:
        raise CheckpointError(f"{source.name!r} is quantised, which is not supported; use its unquantised copy")


def read_settings(source: Source, family: Family, given: PlainMapping) -> GPTConfig:
    """Convert the content of a config.json to a GPTConfig; the errors of ``Family.config`` name the source."""
    try:
        return family.config(given)
    except CheckpointError as error:
        raise CheckpointError(f"{source.name!r}: {error}") from error


def check_layers(given: PlainMapping, family: Family, files: Tensors, source: Source) -> None:
    """Raise a CheckpointError if a config.json has more layers than its tensors, before layers are allocated."""
    count = family.settings(given).get(family.layers)
    numbers = {found[1] for key in files.keys() if (found := _LAYER_NUMBER.search(key))}  # noqa: SIM118
    if isinstance(count, (int, float)) and count > len(numbers):
        raise CheckpointError(
            f"the checkpoint does not fit its {CONFIG_FILE} ({family.model_type}): {family.layers} is {count},"
            f" and its tensors are those of {len(numbers)} layers"
        )


def _described(config: GPTConfig, files: Tensors, source: Source) -> GPTModel:
    """Build the model on the meta device. Raises CheckpointError if it is much larger than the tensors of the files."""
    try:
        model = meta_model(config)
    except ConfigError as error:
        raise CheckpointError(f"{CONFIG_FILE} of {source.name!r} describes a model of impossible size") from error
    wanted = sum(tensor.numel() for tensor in saved_tensors(model).values())
    if wanted > 100 * (files.numel() + 10**6):  # checked before the mappings are expanded to every expert
        raise CheckpointError(
            f"the checkpoint does not fit its {CONFIG_FILE}, which describes {wanted:,} parameters:"
            f" its tensors have {files.numel():,}"
        )
    return model


def match(family: Family, model: GPTModel, files: Tensors) -> list[TensorPair]:
    """Pair every tensor of the files with tensors of the model, such that no tensor of either is left.

    Raises:
        CheckpointError: a tensor is unknown, missing, or of another shape.
    """
    our_tensors, hf_names = saved_tensors(model), files.keys()
    config = model.config
    pairs = list(expand(family.rules, our_tensors, config))
    if not any(key.startswith(family.prefix) for key in hf_names):  # saved without its head
        pairs = [pair._replace(hf_name=pair.hf_name.removeprefix(family.prefix)) for pair in pairs]
    wanted = {pair.hf_name for pair in pairs}
    unfilled = sorted(set(our_tensors) - {name for pair in pairs for name in pair.our_names})
    if unfilled:
        raise CheckpointError(f"no tensor of a {family.model_type} checkpoint fills {listed(unfilled)}")
    missing, left_over = sorted(wanted - hf_names), sorted(_left_over(family, config, hf_names - wanted))
    tied_head = HEAD in left_over and config.tie_embeddings
    if tied_head:
        left_over.remove(HEAD)
    if missing or left_over:
        faults = [f"lacks {listed(missing)}"] * bool(missing) + [f"has unknown {listed(left_over)}"] * bool(left_over)
        raise CheckpointError(
            f"the checkpoint does not fit its {CONFIG_FILE} ({family.model_type}): it {' and '.join(faults)}"
        )
    if tied_head:
        _check_tied(files, pairs)
    for pair in pairs:
        expected, found = pair.joined(our_tensors).shape, files.shape(pair.hf_name)
        if expected != found:
            raise CheckpointError(
                f"tensor {pair.hf_name!r} has the shape {list(found)}, but {CONFIG_FILE} asks for {list(expected)}"
            )
    return pairs


def _left_over(family: Family, config: GPTConfig, keys: set[str]) -> set[str]:
    patterns = [
        pattern.replace("{n_layers}", str(config.n_layers)) for pattern in (INVERSE_FREQUENCIES, *family.ignored)
    ]
    prefixes = ("", family.prefix)
    return {key for key in keys if not any(re.fullmatch(p, prefix + key) for p in patterns for prefix in prefixes)}


def _check_tied(files: Tensors, pairs: Sequence[TensorPair]) -> None:
    """Raise a CheckpointError if a file has a head that differs from the embedding, although they are tied."""
    embedding = next(pair.hf_name for pair in pairs if pair.our_names == (EMBEDDING,))
    if files.shape(HEAD) != files.shape(embedding) or not torch.equal(files.tensor(HEAD), files.tensor(embedding)):
        raise CheckpointError(
            f"tensor {HEAD!r} differs from {embedding!r}, but {CONFIG_FILE} has tie_word_embeddings; set it to false"
        )


def fill(
    model: GPTModel, pairs: Sequence[TensorPair], files: Tensors, dtype: torch.dtype | None, device: torch.device
) -> GPTModel:
    """Allocate a model from the meta device and copy the tensors into it one by one; all parameters get ``dtype``."""
    if dtype is None:
        dtype = files.tensor(next(pair.hf_name for pair in pairs if pair.our_names == (EMBEDDING,))).dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise CheckpointError(f"tensors of {dtype} are not supported: give dtype=torch.float32")

    def copy_all(our_tensors: Mapping[str, Tensor]) -> None:
        for pair in pairs:
            pair.fill(our_tensors, files.tensor(pair.hf_name))

    return materialize(model, copy_all, {name: dtype for name, _ in model.named_parameters()}, device)
