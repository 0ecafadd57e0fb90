"""Change parts of a trained model: what still fits is kept, the rest is made from what was there, or starts new.

Parts of one kind and one setting are copied. A part of another kind starts from what the old one offers (see
core/weight_transfer.py): shared key/value heads from means, a latent from an SVD, experts from a dense part.
Tables of tokens and positions keep the rows that both have.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import Attention, FeedForward, Norm
from modular_gpt.core.registry import ComponentConfig, encode, merge
from modular_gpt.core.weight_transfer import TransferReport
from modular_gpt.evaluation import evaluate_tokens
from modular_gpt.model import GPTModel
from modular_gpt.model.config import SLOTS, GPTConfig
from modular_gpt.model.materialize import saved_tensors

LOADED, CONVERTED, NEW, SKIPPED = "loaded", "converted", "new", "skipped"
_LAYER = re.compile(r"blocks\.(\d+)\.")
_ONLY_TRAINING = {"name", "dropout", "backend"}


class Row(NamedTuple):
    """One tensor: of the new model, or, where it is skipped, of the old one."""

    name: str
    status: str
    how: str
    numbers: int
    partly_new: bool = False  # some of its rows are newly initialised


@dataclass
class Transplant:
    """What became of every tensor; printed as a table."""

    rows: list[Row] = field(default_factory=list)

    def count(self, status: str) -> int:
        """How many numbers have this status."""
        return sum(row.numbers for row in self.rows if row.status == status)

    def new_weights(self) -> list[str]:
        """The names of the tensors that are newly initialised, all of them or some of their rows."""
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
    """One line for the same tensor of several layers, in the order of the model."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((_LAYER.sub("", row.name), row.how), []).append(row)
    for (name, how), same in alike.items():
        layers = [int(found[1]) for row in same if (found := _LAYER.match(row.name))]
        last = f"-{layers[-1]}" if len(layers) > 1 else ""
        where = f"blocks.{layers[0]}{last}." if layers else ""
        yield where + name, f"{sum(row.numbers for row in same):,}", how


def with_parts(config: GPTConfig, changes: Mapping[str, Any]) -> GPTConfig:
    """The config of a model with some settings changed: ``{"attention": "gqa", "ffn": {"hidden": 512}}``.

    A part's settings are merged with those it has; another name starts from that part's own defaults.

    Raises:
        ConfigError: a setting is unknown or cannot work.
    """
    parts = {slot: encode(merge(slot, getattr(config, slot), changes[slot])) for slot in SLOTS if slot in changes}
    return GPTConfig.from_dict({**config.to_dict(), **changes, **parts})


@torch.no_grad()
def transplant(source: GPTModel, config: GPTConfig) -> tuple[GPTModel, Transplant]:
    """A model of this config that starts from the weights of another, and what became of each tensor.

    It is of the same type, on the same device and in the same mode as the source, which stays as it is. Blocks are
    matched by their number; the weights of what is new are drawn as the config's ``init`` says.
    """
    weight = source.embedding.weight
    target = GPTModel(config).to(weight.device, weight.dtype).train(source.training)
    made, used, partly_new = _tables(source, target)
    for where, old, new, same in _parts(source, target):
        drawn = {} if same else {name: tensor.clone() for name, tensor in saved_tensors(new).items()}
        part_made, part_used = _part(old, new, same)
        made |= {f"{where}.{name}": how for name, how in part_made.items()}
        used |= {f"{where}.{name}" for name in part_used}
        kept = (name for name, tensor in drawn.items() if _has_rows_of(saved_tensors(new)[name], tensor))
        partly_new |= {f"{where}.{name}" for name in kept}
    report = Transplant()
    for name, tensor in saved_tensors(target).items():
        status = NEW if name not in made else CONVERTED if made[name] else LOADED
        report.rows.append(Row(name, status, made.get(name, ""), tensor.numel(), name in partly_new))
    skipped = {name: tensor for name, tensor in saved_tensors(source).items() if name not in used}
    report.rows += [Row(name, SKIPPED, "", tensor.numel()) for name, tensor in skipped.items()]
    return target, report


def _has_rows_of(tensor: Tensor, drawn: Tensor) -> bool:
    """Whether some row is still the random one with which the tensor was initialised."""
    if tensor.ndim < 2:
        return False
    rows, before = tensor.flatten(1), drawn.flatten(1)
    return bool(((rows == before).all(1) & before.ne(0).any(1)).any())


def _tables(source: GPTModel, target: GPTModel) -> tuple[TransferReport, set[str], set[str]]:
    """Copy the rows that both models have of each table of tokens or positions.

    Returns how each was made, the tables used, and those with more rows than there were.
    """
    old, new = saved_tensors(source), saved_tensors(target)
    made, used, partly_new = {}, set(), set()
    for name, tensor in new.items():
        if not name.startswith(("embedding.", "positions.", "head")):
            continue
        untied = name == "head.weight" and name not in old
        theirs = old.get("embedding.weight" if untied else name)
        if theirs is None or theirs.shape[1:] != tensor.shape[1:]:
            continue
        rows = min(len(theirs), len(tensor))
        tensor[:rows] = theirs[:rows]
        some = "" if rows == len(tensor) == len(theirs) else f"the first {rows} rows"
        made[name] = ", ".join(filter(None, ["the embedding" if untied else "", some]))
        used.add(name)
        if rows < len(tensor):
            partly_new.add(name)
    return made, used, partly_new


def _parts(source: GPTModel, target: GPTModel) -> Iterator[tuple[str, nn.Module | None, nn.Module, bool]]:
    """(name, old part, new part, whether their settings mean the same) of each part that both models may have."""
    layers = source.config.layer_configs, target.config.layer_configs
    for index, (old, new) in enumerate(zip(source.blocks, target.blocks, strict=False)):
        for name, part in new.named_children():
            slot = name if name in SLOTS else "norm"
            same = _same(getattr(layers[0][index], slot), getattr(layers[1][index], slot))
            yield f"blocks.{index}.{name}", getattr(old, name), part, same
    for name in ("embedding_norm", "final_norm"):
        part = getattr(target, name)
        if part is not None:
            yield name, getattr(source, name), part, _same(source.config.resolved_norm, target.config.resolved_norm)


def _same(old: ComponentConfig, new: ComponentConfig) -> bool:
    """Whether two settings of a part mean the same to a trained model."""
    values, others = encode(old), encode(new)
    return old.component is new.component and all(
        values[name] == others[name] for name in values if name not in _ONLY_TRAINING
    )


def _part(old: nn.Module | None, new: nn.Module, same: bool) -> tuple[TransferReport, set[str]]:
    """Copy a part, or let it start from what the old one offers: how its tensors were made, and the old ones used."""
    if old is None:
        return {}, set()
    mine, theirs = saved_tensors(new), saved_tensors(old)
    alike = {name for name in mine if name in theirs and mine[name].shape == theirs[name].shape}
    made: TransferReport = {}
    if not (same and len(alike) == len(mine) == len(theirs)):
        # Dropout and what else is no component of ours has nothing to offer.
        source = old.canonical_weights() if isinstance(old, Attention | FeedForward | Norm) else None
        made = {} if source is None else cast(Any, new).init_from(source)
        words = {_word(name) for name in made}
        used = {name for name in theirs if _word(name) in words}
        alike = {name for name in alike if name not in made} if type(old) is type(new) and made else set()
    else:
        used = set()
    for name in alike:  # all of a part that stays, or what an offer does not speak of, such as sinks
        mine[name].copy_(theirs[name])
    return made | dict.fromkeys(alike, ""), used | alike


def _word(name: str) -> str:
    """The same for ``up.weight`` of a layer and ``up`` of stacked experts."""
    return name.removesuffix(".weight").replace(".", "_")


def text_loss(model: GPTModel, ids: Tensor, batch: int = 8) -> float:
    """Mean cross-entropy in nats of each token of a text (n,) given those before it in its window.

    The text is cut into windows of the model's context_length, ``batch`` of which are read at once.
    """
    return evaluate_tokens(model, ids.cpu().numpy(), len(ids), batch_size=batch).loss
