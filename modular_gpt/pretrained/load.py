"""Published models into GPTModel: their config is read as ours, then each tensor is copied to its place."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.pretrained.families import FAMILIES
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.hub import CONFIG, Source, locate
from modular_gpt.pretrained.tensor_map import TensorPair, expand
from modular_gpt.pretrained.weight_files import Tensors, listed

HEAD, EMBEDDING = "lm_head.weight", "embedding.weight"


def load_pretrained(
    name_or_path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> GPTModel:
    """A published model, in evaluation mode.

    name_or_path: gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, another name on the Hugging Face hub, or the
        folder of a model; the local cache is asked before the hub
    dtype: of the parameters; None for the dtype of the file's token embedding
    device: where they are put; None for the CPU

    Raises:
        CheckpointError: there is no such model, it is of an unknown kind, damaged, or has tensors that are unknown,
            missing or of another shape.
        ConfigError: its config has a setting that cannot work.
    """
    source = locate(name_or_path)
    family, config = read_config(source)
    with torch.device("meta"):
        model = GPTModel(config)
    with Tensors(source) as files:
        links = match(family, model, files)
        fill(model, links, files, dtype, torch.device(device or "cpu"))
    return model.eval()


def read_config(source: Source) -> tuple[Family, GPTConfig]:
    """The kind of a published model, and its config as ours."""
    given = source.json(CONFIG)
    if given is None:
        raise CheckpointError(f"{source.name!r} has no {CONFIG}; give the folder of a model")
    kind = given.get("model_type")
    if kind not in FAMILIES:
        if "format" in given:
            raise CheckpointError(
                f"{source.name!r} is a checkpoint of this program, which modular_gpt.checkpoint reads"
            )
        if kind is None:
            raise CheckpointError(
                f"{CONFIG} of {source.name!r} has no model_type; there are: {listed(sorted(FAMILIES))}"
            )
        raise CheckpointError(f"{source.name!r}: {unknown('architecture', str(kind), FAMILIES)}")
    if given.get("quantization_config"):
        raise CheckpointError(f"{source.name!r} is quantised, which is not supported; use its unquantised copy")
    family = FAMILIES[kind]
    try:
        return family, GPTConfig.from_dict(family.read({**family.defaults, **given}))
    except KeyError as error:
        raise CheckpointError(f"{CONFIG} of {source.name!r} lacks the setting {error}") from error
    except (TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"{CONFIG} of {source.name!r} has a setting of a wrong type or size: {error}") from error


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, each tensor once: parameters and the buffers that are saved."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


def match(family: Family, model: GPTModel, files: Tensors) -> list[TensorPair]:
    """Which tensor of the files goes where; every one of them, and every one of the model.

    Raises:
        CheckpointError: one is left over, missing, or of another shape.
    """
    ours, theirs = own_tensors(model), files.keys()
    config = model.config
    links = list(expand(family.rules, ours, config.n_layers, config.n_heads))
    if not any(key.startswith(family.prefix) for key in theirs):  # saved without its head
        links = [link._replace(theirs=link.theirs.removeprefix(family.prefix)) for link in links]
    wanted = {link.theirs for link in links}
    unfilled = sorted(set(ours) - {name for link in links for name in link.ours})
    if unfilled:
        raise CheckpointError(f"no tensor of a {family.model_type} checkpoint fills {listed(unfilled)}")
    missing, left_over = sorted(wanted - theirs), sorted(_left_over(family, config, theirs - wanted))
    if HEAD in left_over and config.tie_embeddings:
        left_over.remove(HEAD)
        _check_tied(files, links)
    if missing or left_over:
        faults = [f"lacks {listed(missing)}"] * bool(missing) + [f"has unknown {listed(left_over)}"] * bool(left_over)
        raise CheckpointError(
            f"the checkpoint does not fit its {CONFIG} ({family.model_type}): it {' and '.join(faults)}"
        )
    for link in links:
        expected, found = link.joined(ours).shape, files.shape(link.theirs)
        if expected != found:
            raise CheckpointError(
                f"tensor {link.theirs!r} has the shape {list(found)}, but {CONFIG} asks for {list(expected)}"
            )
    return links


def _left_over(family: Family, config: GPTConfig, keys: set[str]) -> set[str]:
    patterns = [pattern.replace("{n_layers}", str(config.n_layers)) for pattern in family.ignored]
    prefixes = ("", family.prefix)
    return {key for key in keys if not any(re.fullmatch(p, prefix + key) for p in patterns for prefix in prefixes)}


def _check_tied(files: Tensors, links: Sequence[TensorPair]) -> None:
    """A head in a file whose config says that the head is the embedding must be the embedding."""
    embedding = next(link.theirs for link in links if link.ours == (EMBEDDING,))
    if not torch.equal(files.tensor(HEAD), files.tensor(embedding)):
        raise CheckpointError(
            f"tensor {HEAD!r} differs from {embedding!r}, but {CONFIG} says tie_word_embeddings; set it to false"
        )


@torch.no_grad()
def fill(
    model: GPTModel, links: Sequence[TensorPair], files: Tensors, dtype: torch.dtype | None, device: torch.device
) -> None:
    """Allocate a model that was built without storage, and copy one tensor after another into it."""
    if dtype is None:
        dtype = files.tensor(next(link.theirs for link in links if link.ours == (EMBEDDING,))).dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise CheckpointError(f"tensors of {dtype} are not supported: give dtype=torch.float32")
    allocate(model, dtype, device)
    ours = own_tensors(model)
    for link in links:
        link.fill(ours, files.tensor(link.theirs))


def allocate(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give storage to a model built on the meta device: parameters of ``dtype``, buffers as they are."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, dtype=dtype, device=device)))
        buffers: list[tuple[str, Any]] = list(module.named_buffers(recurse=False))
        for name, buffer in buffers:
            setattr(module, name, torch.zeros_like(buffer, device=device))
        reset = getattr(module, "reset_parameters", None)
        if buffers and callable(reset):
            reset()  # buffers that no file holds
