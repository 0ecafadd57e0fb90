"""Two-way mappings between the keys of a config.json and our settings, as tensor_map.py has for tensors.

A key that is one setting of ours needs one line, which reads and writes::

    key("rms_norm_eps", "norm.eps")
    key("moe_intermediate_size", "ffn@moe.hidden")

The second applies to layers with that component only. ``Keys`` is a pair of functions for meanings that are spread
over several keys. A value may be ``PerLayer``: the layers are assembled one by one and folded into variants and a
cycle, so no mapping knows about patterns. Writing may be approximate, because save.py reads back what it writes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modular_gpt.core.errors import ConfigError, printable
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, encode, lookup
from modular_gpt.model.config import BASE, BLOCK, LARGEST, SLOTS, BlockConfig, GPTConfig
from modular_gpt.pretrained.config_map import HFConfig


class PerLayer(tuple[Any, ...]):
    """One value for each layer."""


def per_layer(values: Iterable[Any]) -> Any:
    """The values of the layers, or the one value that all of them have."""
    values = list(values)
    return values[0] if values and all(value == values[0] for value in values) else PerLayer(values)


class ModelView:
    """Our settings by path, nulls resolved: of the model, or of the first layer whose component has a value.

    defaults: the values of keys that a config.json of the family omits; synonyms: other names of these keys
    """

    def __init__(self, config: GPTConfig, defaults: PlainMapping, synonyms: Mapping[str, str]) -> None:
        self.config, self.defaults, self.synonyms = config, defaults, synonyms
        self.layers: list[BlockConfig] = config.layer_configs

    def default(self, name: str) -> Any:
        """The value of a key that a config.json of the family omits; None: it has no such key."""
        return self.defaults.get(self.synonyms.get(name, name))

    def each(self, path: str) -> list[Any]:
        """The setting in each layer; None where the component of a layer does not have it."""
        slot, component, name = split_path(path)
        if slot == BLOCK:
            return [getattr(layer, name) for layer in self.layers]
        found = [getattr(layer, slot) for layer in self.layers]
        return [getattr(config, name, None) if _is(slot, config, component) else None for config in found]

    def has(self, path: str) -> bool:
        """Whether the component of some layer has the setting, be its value null."""
        slot, component, name = split_path(path)
        if slot not in SLOTS:
            return True
        return any(
            _is(slot, config, component) and hasattr(config, name)
            for config in (getattr(layer, slot) for layer in self.layers)
        )

    def __getitem__(self, path: str) -> Any:
        if split_path(path)[0] not in (*SLOTS, BLOCK):
            return getattr(self.config, path)
        return next((value for value in self.each(path) if value is not None), None)


def split_path(path: str) -> tuple[str, str, str]:
    """``ffn@moe.hidden`` -> slot, name of the component or "", setting; a setting of the model is the slot itself."""
    place, _, name = path.partition(".")
    slot, _, component = place.partition("@")
    return slot, component, name


def _is(slot: str, config: ComponentConfig, component: str) -> bool:
    return not component or issubclass(config.component, lookup(slot, component).component)


def nothing(view: ModelView) -> PlainDict:
    """For settings that all models of a family have: there is no key to write."""
    return {}


@dataclass(frozen=True)
class Keys:
    """Keys of a config.json and our settings with the same meaning.

    from_hf: keys -> our settings by path; to_hf: our settings -> keys
    """

    from_hf: Callable[[HFConfig], PlainMapping]
    to_hf: Callable[[ModelView], PlainMapping] = nothing


KeyTree = Keys | Sequence["KeyTree"]


def flattened(keys: KeyTree) -> Iterator[Keys]:
    """The mappings in nested sequences, in order; later ones win."""
    if isinstance(keys, Keys):
        yield keys
    else:
        for inner in keys:
            yield from flattened(inner)


def key(
    hf_name: str,
    path: str,
    from_hf: Callable[[Any], Any] = lambda value: value,
    to_hf: Callable[[Any], Any] = lambda value: value,
) -> Keys:
    """One key and one setting; ``from_hf`` and ``to_hf`` convert values other than null."""

    def write(view: ModelView) -> PlainDict:
        value = view[path]
        if value is None and not view.has(path):
            return {}
        return {hf_name: None if value is None else to_hf(value)}

    def read(settings: HFConfig) -> PlainDict:
        value = settings[hf_name]
        return {path: None if value is None else from_hf(value)}

    return Keys(read, write)


def always(settings: PlainMapping) -> Keys:
    """Our settings, by path, that all models of a family have."""
    return Keys(lambda given: settings)


def layer_count(settings: HFConfig) -> int:
    """The number of layers of a config.json, for lists of values per layer.

    Raises:
        ConfigError: it is no number of layers.
    """
    count = settings["num_hidden_layers"]
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= LARGEST["n_layers"]:
        found = printable(repr(count))
        raise ConfigError(f"num_hidden_layers must be a whole number up to {LARGEST['n_layers']}, got {found}")
    return count


def read_keys(keys: Iterable[Keys], settings: HFConfig) -> PlainDict:
    """Convert the keys of a config.json to our settings, as ``GPTConfig.from_dict`` takes them."""
    flat: PlainDict = {}
    count = layer_count(settings)
    for mapping in keys:
        flat |= mapping.from_hf(settings)
    model = {path: value for path, value in flat.items() if split_path(path)[0] not in (*SLOTS, BLOCK)}
    layers = _layers({path: value for path, value in flat.items() if path not in model}, count)
    return {**model, **_fold(layers)}


def write_keys(keys: Iterable[Keys], view: ModelView) -> PlainDict:
    """Convert our settings to keys; a null is written only where the family would assume a value."""
    found: PlainDict = {}
    for mapping in keys:
        for name, value in mapping.to_hf(view).items():
            found[view.synonyms.get(name, name)] = value
    return {name: value for name, value in found.items() if value is not None or view.default(name) is not None}


def _layers(flat: PlainMapping, count: int) -> list[PlainDict]:
    """The settings of each layer by slot, with every default of its components; equal layers are the same object."""
    names_first = sorted(flat.items(), key=lambda item: not item[0].endswith(".name"))
    made: dict[str, PlainDict] = {}
    layers = []
    for index in range(count):
        raw: dict[str, PlainDict] = {slot: {} for slot in (*SLOTS, BLOCK)}
        for path, value in names_first:
            slot, component, name = split_path(path)
            if not component or _named(slot, raw[slot].get("name"), component):
                raw[slot][name] = value[index] if isinstance(value, PerLayer) else value
        identity = repr(raw)
        if identity not in made:
            slots: PlainDict = {slot: encode(decode(slot, raw[slot])) for slot in SLOTS}
            made[identity] = {**slots, BLOCK: {"topology": "pre", **raw[BLOCK]}}
        layers.append(made[identity])
    return layers


def _named(slot: str, name: Any, component: str) -> bool:
    return isinstance(name, str) and issubclass(lookup(slot, name).component, lookup(slot, component).component)


def _fold(layers: Sequence[PlainDict]) -> PlainDict:
    """Settings of the most frequent layer, with ``layers`` for the others."""
    distinct = list({id(layer): layer for layer in layers}.values())
    counts = {id(layer): sum(other is layer for other in layers) for layer in distinct}
    base = max(distinct, key=lambda layer: counts[id(layer)])
    names: dict[int, str] = {id(base): BASE}
    variants: PlainDict = {}
    for layer in distinct:
        if layer is not base:
            changed = {slot: _changed(layer[slot], base[slot]) for slot in layer if layer[slot] != base[slot]}
            name = _variant_name(changed, variants)
            names[id(layer)], variants[name] = name, changed
    plain = {slot: base[slot] for slot in SLOTS}
    folded = {**plain, **base[BLOCK]}
    if variants:
        pattern = fold_names([names[id(layer)] for layer in layers])
        folded["layers"] = {"name": "published", "variants": variants, **pattern}
    return folded


def _changed(settings: PlainMapping, base: PlainMapping) -> PlainDict:
    """The settings that differ; all of them where the component is another one."""
    if settings.get("name") != base.get("name"):
        return dict(settings)
    return {name: value for name, value in settings.items() if value != base[name]}


def _variant_name(changed: Mapping[str, PlainDict], taken: PlainMapping) -> str:
    """A name that tells what differs: another component, a window, or any."""
    named = [settings["name"] for settings in changed.values() if "name" in settings]
    window = changed.get("attention", {}).get("window", 0)
    name = named[0] if named else "full" if window is None else "sliding" if window else "variant"
    return name if name not in taken else f"{name}_{len(taken)}"


def fold_names(names: Sequence[str]) -> dict[str, list[str]]:
    """The shortest ``prefix`` and ``cycle`` of variants that spell ``names``."""
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
