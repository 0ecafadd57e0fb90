"""Fold the settings of single layers into those of the most frequent layer, and ``layers`` for the other layers."""

from collections.abc import Mapping, Sequence

from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.model.config import BASE, BLOCK, SLOTS


def fold_layers(layers: Sequence[PlainDict], name: str) -> PlainDict:
    """Settings for ``GPTConfig.from_dict``, the inverse of ``GPTConfig.layer_configs``.

    layers: the settings of each layer by slot; equal layers must be the same object
    name: of the pattern
    """
    distinct = list({id(layer): layer for layer in layers}.values())
    counts = {id(layer): sum(other is layer for other in layers) for layer in distinct}
    base = max(distinct, key=lambda layer: counts[id(layer)])
    names: dict[int, str] = {id(base): BASE}
    variants: PlainDict = {}
    for layer in distinct:
        if layer is not base:
            changed = {slot: _changed(layer[slot], base[slot]) for slot in layer if layer[slot] != base[slot]}
            variant = _variant_name(changed, variants)
            names[id(layer)], variants[variant] = variant, changed
    folded = {**{slot: base[slot] for slot in SLOTS}, **base[BLOCK]}
    if variants:
        pattern = fold_names([names[id(layer)] for layer in layers])
        folded["layers"] = {"name": name, "variants": variants, **pattern}
    return folded


def _changed(settings: PlainMapping, base: PlainMapping) -> PlainDict:
    """The settings that differ from ``base``; all of them if the component is another one."""
    if settings.get("name") != base.get("name"):
        return dict(settings)
    return {name: value for name, value in settings.items() if value != base[name]}


def _variant_name(changed: Mapping[str, PlainDict], taken: PlainMapping) -> str:
    """A new name for a variant: the name of another component, full or sliding for a window, or else variant."""
    named = [settings["name"] for settings in changed.values() if "name" in settings]
    window = changed.get("attention", {}).get("window", 0)
    name = named[0] if named else "full" if window is None else "sliding" if window else "variant"
    return name if name not in taken else f"{name}_{len(taken)}"


def fold_names(names: Sequence[str]) -> dict[str, list[str]]:
    """The shortest ``prefix`` and ``cycle`` of variants whose pattern is ``names``."""
    best: tuple[list[str], list[str]] = ([], list(names))
    for length in range(len(names)):
        if length >= len(best[0]) + len(best[1]):
            break
        cycle = shortest_cycle(names[length:])
        if length + len(cycle) < len(best[0]) + len(best[1]):
            best = (list(names[:length]), cycle)
    return {"prefix": best[0], "cycle": best[1]}


def shortest_cycle(names: Sequence[str]) -> list[str]:
    """The shortest prefix of ``names`` whose repetition, possibly cut off, is ``names``."""
    lengths = range(1, len(names) + 1)
    return next(list(names[:n]) for n in lengths if all(name == names[i % n] for i, name in enumerate(names)))
