"""Model surgery: replaces components of a trained model and keeps or converts its weights where possible.

Components with the same class and settings are copied. Another component is initialised from the weights of the old one
(see core/weight_transfer.py): shared key/value heads from means, a latent by SVD, experts from a dense network. Tables
of tokens and positions keep the rows that both models have.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import Attention, FeedForward, Norm
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.registry import ComponentConfig, encode, merge
from modular_gpt.core.weight_transfer import TransferReport
from modular_gpt.model.config import SLOTS, GPTConfig
from modular_gpt.model.gpt import GPTModel
from modular_gpt.model.materialize import saved_tensors

LOADED, CONVERTED, NEW, SKIPPED = "loaded", "converted", "new", "skipped"
_LAYER = re.compile(r"blocks\.(\d+)\.")
_ONLY_TRAINING = {"name", "dropout", "backend"}


class Row(NamedTuple):
    """One tensor of the new model, or, if it is skipped, of the old model.

    status: ``LOADED``, ``CONVERTED``, ``NEW`` or ``SKIPPED``
    how: its derivation; numbers: its number of elements; partly_new: some of its rows are newly initialised
    """

    name: str
    status: str
    how: str
    numbers: int
    partly_new: bool = False


@dataclass
class Transplant:
    """Report on every tensor of a model surgery; ``str`` formats it as a table."""

    rows: list[Row] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Number of elements of all tensors with this status."""
        return sum(row.numbers for row in self.rows if row.status == status)

    def new_weights(self) -> list[str]:
        """Names of the tensors that are newly initialised, completely or in some of their rows."""
        return [row.name for row in self.rows if row.status == NEW or row.partly_new]

    def __str__(self) -> str:
        lines = [("", "tensors", "numbers", "how")]
        for status in (LOADED, CONVERTED, NEW, SKIPPED):
            rows = [row for row in self.rows if row.status == status]
            if rows:
                lines.append((status, "", f"{self.count(status):,}", ""))
                lines += [("", *line) for line in _grouped(rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in lines)


def _grouped(rows: list[Row]) -> Iterator[tuple[str, str, str]]:
    """One line (name, elements, derivation) for the same tensor of several layers, in the order of the model."""
    similar: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        similar.setdefault((_LAYER.sub("", row.name), row.how), []).append(row)
    for (name, how), same in similar.items():
        layers = [int(found[1]) for row in same if (found := _LAYER.match(row.name))]
        last = f"-{layers[-1]}" if len(layers) > 1 else ""
        where = f"blocks.{layers[0]}{last}." if layers else ""
        yield where + name, f"{sum(row.numbers for row in same):,}", how


def with_components(config: GPTConfig, changes: PlainMapping) -> GPTConfig:
    """A copy of a config with some settings changed, such as ``{"attention": "gqa", "ffn": {"hidden": 512}}``.

    Settings of a component are merged with its present ones; another component starts from its defaults.

    Raises:
        ConfigError: a setting is unknown or cannot work.
    """
    components = {slot: encode(merge(slot, getattr(config, slot), changes[slot])) for slot in SLOTS if slot in changes}
    return GPTConfig.from_dict({**config.to_dict(), **changes, **components})


with_parts = with_components  # the former name


@torch.no_grad()
def transplant(source: GPTModel, config: GPTConfig) -> tuple[GPTModel, Transplant]:
    """Build a model of this config from the weights of another model. Returns it and a report on every tensor.

    The new model has the dtype, device and mode of ``source``, which is not modified. Blocks are matched by their
    index; new weights are initialised by the config's ``init``.
    """
    weight = source.embedding.weight
    target = GPTModel(config).to(weight.device, weight.dtype).train(source.training)
    derived, used, partly_new = _copy_tables(source, target)
    for where, old, new, same in _components(source, target):
        drawn = {} if same else {name: tensor.clone() for name, tensor in saved_tensors(new).items()}
        names, used_names = _transfer(old, new, same)
        derived |= {f"{where}.{name}": how for name, how in names.items()}
        used |= {f"{where}.{name}" for name in used_names}
        unchanged = (name for name, tensor in drawn.items() if _has_rows_of(saved_tensors(new)[name], tensor))
        partly_new |= {f"{where}.{name}" for name in unchanged}
    report = Transplant()
    for name, tensor in saved_tensors(target).items():
        status = NEW if name not in derived else CONVERTED if derived[name] else LOADED
        report.rows.append(Row(name, status, derived.get(name, ""), tensor.numel(), name in partly_new))
    skipped = {name: tensor for name, tensor in saved_tensors(source).items() if name not in used}
    report.rows += [Row(name, SKIPPED, "", tensor.numel()) for name, tensor in skipped.items()]
    return target, report


def _has_rows_of(tensor: Tensor, drawn: Tensor) -> bool:
    """Whether some row of ``tensor`` still has its random initial values, ``drawn``."""
    if tensor.ndim < 2:
        return False
    rows, before = tensor.flatten(1), drawn.flatten(1)
    return bool(((rows == before).all(1) & before.ne(0).any(1)).any())


def _copy_tables(source: GPTModel, target: GPTModel) -> tuple[TransferReport, set[str], set[str]]:
    """Copy the rows that both models have of each table of tokens or positions.

    Returns the derivation of each table, the source tensors used, and the tables with more rows than in the source.
    """
    old, new = saved_tensors(source), saved_tensors(target)
    derived, used, partly_new = {}, set(), set()
    for name, tensor in new.items():
        if not name.startswith(("embedding.", "positions.", "head")):
            continue
        untied = name == "head.weight" and name not in old
        old_tensor = old.get("embedding.weight" if untied else name)
        if old_tensor is None or old_tensor.shape[1:] != tensor.shape[1:]:
            continue
        rows = min(len(old_tensor), len(tensor))
        tensor[:rows] = old_tensor[:rows]
        some = "" if rows == len(tensor) == len(old_tensor) else f"the first {rows} rows"
        derived[name] = ", ".join(filter(None, ["the embedding" if untied else "", some]))
        used.add(name)
        if rows < len(tensor):
            partly_new.add(name)
    return derived, used, partly_new


def _components(source: GPTModel, target: GPTModel) -> Iterator[tuple[str, nn.Module | None, nn.Module, bool]]:
    """(name, old component, new component, whether their settings are equivalent) of each component of the target."""
    layers = source.config.layer_configs, target.config.layer_configs
    for index, (old, new) in enumerate(zip(source.blocks, target.blocks, strict=False)):
        for name, module in new.named_children():
            slot = name if name in SLOTS else "norm"
            same = _same(getattr(layers[0][index], slot), getattr(layers[1][index], slot))
            yield f"blocks.{index}.{name}", getattr(old, name), module, same
    for name in ("embedding_norm", "final_norm"):
        module = getattr(target, name)
        if module is not None:
            yield name, getattr(source, name), module, _same(source.config.resolved_norm, target.config.resolved_norm)


def _same(old: ComponentConfig, new: ComponentConfig) -> bool:
    """Whether two configs of a component are equivalent for a trained model."""
    values, others = encode(old), encode(new)
    return old.component is new.component and all(
        values[name] == others[name] for name in values if name not in _ONLY_TRAINING
    )


def _transfer(old: nn.Module | None, new: nn.Module, same: bool) -> tuple[TransferReport, set[str]]:
    """Copy a component's tensors, or initialise it from the old one's canonical weights.

    Returns the derivation of its tensors, and the names of the old tensors used.
    """
    if old is None:
        return {}, set()
    new_tensors, old_tensors = saved_tensors(new), saved_tensors(old)
    kept = {name for name, tensor in new_tensors.items() if _shape(old_tensors, name) == tensor.shape}
    derived: TransferReport = {}
    if not (same and len(kept) == len(new_tensors) == len(old_tensors)):
        # modules that are not components, such as dropout, have no canonical weights
        source = old.canonical_weights() if isinstance(old, Attention | FeedForward | Norm) else None
        derived = {} if source is None else cast(Any, new).init_from(source)
        if derived and isinstance(old, Attention) and isinstance(new, Attention) and new.input_conv is not None:
            report = new.input_conv.init_from(old.input_conv)
            derived |= {f"input_conv.{name}": how for name, how in report.items()}
        roles = {_role(name) for name in derived}
        used = {name for name in old_tensors if _role(name) in roles}
        kept = {name for name in kept if name not in derived} if type(old) is type(new) and derived else set()
    else:
        used = set()
    for name in kept:  # all tensors of an unchanged component, or those not in the canonical weights, such as sinks
        new_tensors[name].copy_(old_tensors[name])
    return derived | dict.fromkeys(kept, ""), used | kept


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _role(name: str) -> str:
    """A parameter's name by its role: the same for ``up.weight`` of a layer and ``up`` of stacked experts."""
    return name.removesuffix(".weight").replace(".", "_")
