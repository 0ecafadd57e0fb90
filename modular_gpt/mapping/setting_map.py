"""Two-way mappings between the keys of a config.json and our settings, as tensor_map.py has for tensors.

Most mappings are lines ``key = setting``, which read and write; braces stand for several of them, and a dot for a key
in a nested object. A mapping of settings to values has those that are the same in all models of a type::

    ("rms_norm_eps = norm.eps", "{n_group,topk_group} = ffn@moe.{groups,top_groups}", {"norm.name": "rmsnorm"})

``ffn@moe`` applies only to layers with that component. ``Keys`` is a pair of functions for settings that follow from
several keys. Settings may differ between layers (layer_map.py); such layers are folded into variants and a cycle.
Writing may be approximate, because saving reads the written keys back and compares them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modular_gpt.core.errors import CheckpointError, ConfigError, printable, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, encode, lookup
from modular_gpt.mapping.hf_config import HFConfig
from modular_gpt.mapping.notation import pairs
from modular_gpt.model.config import BLOCK, LARGEST, SLOTS, BlockConfig, GPTConfig
from modular_gpt.model.layer_folding import fold_layers

# raised by conversions of a value of a wrong type or size
WRONG_VALUE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
KEEP: Final = object()  # for one layer in PerLayer: the value of earlier mappings


class PerLayer(tuple[Any, ...]):
    """One value for each layer."""


class ModelView:
    """Our settings by path, nulls resolved: of the model, or of the first layer whose component has a value.

    defaults: the values of keys that a config.json of the family omits; synonyms: other names of these keys
    """

    def __init__(self, config: GPTConfig, defaults: PlainMapping, synonyms: Mapping[str, str]) -> None:
        self.config, self.defaults, self.synonyms = config, defaults, synonyms
        self.layers: list[BlockConfig] = config.layer_configs

    def of_layers(self, chosen: Iterable[bool]) -> "ModelView":
        """The same settings of the model, and those of the chosen layers."""
        view = ModelView(self.config, self.defaults, self.synonyms)
        view.layers = [layer for layer, is_chosen in zip(self.layers, chosen, strict=True) if is_chosen]
        return view

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
        """Return whether the component of some layer has the setting, also if its value is null."""
        slot, component, name = split_path(path)
        if slot not in SLOTS:
            return True
        found = [getattr(layer, slot) for layer in self.layers]
        return any(_is(slot, config, component) and hasattr(config, name) for config in found)

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


@dataclass(frozen=True)
class Keys:
    """Keys of a config.json and our settings with the same meaning.

    from_hf: keys -> our settings by path; to_hf: our settings -> keys; by default none
    """

    from_hf: Callable[[HFConfig], PlainMapping] = lambda settings: {}
    to_hf: Callable[[ModelView], PlainMapping] = lambda view: {}


KeyTree = Keys | str | PlainMapping | Sequence["KeyTree"]  # a line and a mapping of our settings are short for Keys


def flattened(keys: KeyTree) -> Iterator[Keys]:
    """Yield the mappings in nested sequences, in order; later ones override earlier ones."""
    if isinstance(keys, Keys):
        yield keys
    elif isinstance(keys, str):
        yield from lines(keys)
    elif isinstance(keys, Mapping):
        yield always(keys)
    else:
        for inner in keys:
            yield from flattened(inner)


def joined(keys: KeyTree) -> Keys:
    """Combine several mappings into one; later ones override earlier ones."""
    found = tuple(flattened(keys))
    return Keys(
        lambda settings: {path: value for mapping in found for path, value in mapping.from_hf(settings).items()},
        lambda view: {name: value for mapping in found for name, value in mapping.to_hf(view).items()},
    )


def key(
    hf_name: str,
    path: str,
    from_hf: Callable[[Any], Any] = lambda value: value,
    to_hf: Callable[[Any], Any] = lambda value: value,
    null: Any = None,
) -> Keys:
    """One key and one setting.

    from_hf, to_hf: conversions of values other than null; null: the setting where the key is null
    """

    def write(view: ModelView) -> PlainDict:
        value = view[path]
        if value is None and not view.has(path):
            return {}
        return {hf_name: None if value is None else to_hf(value)}

    def read(settings: HFConfig) -> PlainDict:
        value = settings[hf_name]
        return {path: null if value is None else from_hf(value)}

    return Keys(read, write)


def lines(*given: str) -> tuple[Keys, ...]:
    """Keys and settings, one pair in a line; a line without a sign is a key with our name.

    ``=`` reads and writes, ``=>`` only reads, ``<=`` only writes.
    """
    found: list[Keys] = []
    for line in given:
        sign = next((sign for sign in (" => ", " <= ") if sign in line), " = ")
        for hf_name, path in pairs(line.replace(sign, " = ")):
            both = key(hf_name, path)
            found.append({" = ": both, " => ": Keys(both.from_hf), " <= ": Keys(to_hf=both.to_hf)}[sign])
    return tuple(found)


def switch(hf_name: str, path: str, on: Any, off: Any) -> Keys:
    """A key that is true or false, and a setting with one of two values."""
    return Keys(
        lambda settings: {path: on if settings[hf_name] else off}, lambda view: {hf_name: view[path] not in (off, None)}
    )


def enabled_by(hf_name: str, mark: str, keys: KeyTree) -> Keys:
    """Mappings that apply where a key is true; ``mark``: a setting that has a value only there."""
    inner = joined(keys)

    def read(settings: HFConfig) -> PlainMapping:
        found = inner.from_hf(settings)
        return found if settings[hf_name] else {}

    return Keys(read, lambda view: {**inner.to_hf(view), hf_name: bool(view[mark])})


def named(hf_name: str, path: str, names: Mapping[str, str], noun: str) -> Keys:
    """A key whose value is a name, and a setting with our name for it.

    If several of their names have our name, the default of the key is written if it is among them, else the first one.
    noun: what the names denote, for the message of the CheckpointError about an unknown one
    """

    def read(settings: HFConfig) -> PlainDict:
        if settings[hf_name] not in names:
            raise CheckpointError(unknown(noun, str(settings[hf_name]), names))
        return {path: names[settings[hf_name]]}

    def write(view: ModelView) -> PlainDict:
        found = [hf_value for hf_value, our_name in names.items() if our_name == view[path]] or [view[path]]
        return {hf_name: view.default(hf_name) if view.default(hf_name) in found else found[0]} if view[path] else {}

    return Keys(read, write)


def always(settings: PlainMapping) -> Keys:
    """Our settings, by path, that all models of a type have."""
    return Keys(lambda given: settings)


def only(**values: Any) -> Keys:
    """Keys that must have these values, or be absent."""

    def read(settings: HFConfig) -> PlainDict:
        for name, value in values.items():
            if (given := settings.get(name, value)) != value:
                found = printable(repr(given))
                raise CheckpointError(f"the checkpoint has {name}={found}, which is not supported: only {value!r} is")
        return {}

    return Keys(read, lambda view: values)


def needed(name: str, path: str) -> Keys:
    """A key that must not be null."""

    def read(settings: HFConfig) -> PlainDict:
        if settings[name] is None:
            raise KeyError(name)
        return {path: settings[name]}

    return Keys(read, key(name, path).to_hf)


def computed(path: str, from_hf: Callable[[HFConfig], Any]) -> Keys:
    """A setting that follows from other keys."""
    return Keys(lambda settings: {path: from_hf(settings)})


def inside(hf_name: str, *given: str) -> Keys:
    """Keys of a nested object, in lines; they are only read, and the object and each of them may be absent."""

    def read(settings: HFConfig) -> PlainDict:
        nested = settings[hf_name] or {}
        return {path: nested[name] for name, path in pairs(*given) if name in nested}

    return Keys(read)


def rounded(value: float) -> float:
    """Return the nearest whole number if ``value`` equals it up to a relative error of 1e-9, else ``value``."""
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def of_layer(value: Any, index: int) -> Any:
    """Return the value of one layer if ``value`` is a PerLayer, else ``value``."""
    return value[index] if isinstance(value, PerLayer) else value


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


def read_keys(mappings: Iterable[Keys], settings: HFConfig) -> PlainDict:
    """Convert the keys of a config.json to our settings, as ``GPTConfig.from_dict`` takes them."""
    count = layer_count(settings)
    found = [pair for mapping in mappings for pair in mapping.from_hf(settings).items()]
    of_model = {path: value for path, value in found if split_path(path)[0] not in (*SLOTS, BLOCK)}
    of_layers = [(path, value) for path, value in found if path not in of_model]
    return {**of_model, **fold_layers(_layers(of_layers, count), "published")}


def write_keys(mappings: Iterable[Keys], view: ModelView) -> PlainDict:
    """Convert our settings to keys; a null is written only where the family would assume a value."""
    found: PlainDict = {}
    for mapping in mappings:
        for name, value in mapping.to_hf(view).items():
            *outer, leaf = view.synonyms.get(name, name).split(".")
            target = found
            for outer_key in outer:
                target = target.setdefault(outer_key, {})
            target[leaf] = value
    return {name: value for name, value in found.items() if value is not None or view.default(name) is not None}


def _layers(settings: Sequence[tuple[str, Any]], count: int) -> list[PlainDict]:
    """The settings of each layer by slot, with every default of its components; equal layers are the same object."""
    names_first = sorted(settings, key=lambda item: not item[0].endswith(".name"))
    layers: dict[str, PlainDict] = {}
    found = []
    for index in range(count):
        raw: dict[str, PlainDict] = {slot: {} for slot in (*SLOTS, BLOCK)}
        for path, given in names_first:
            slot, component, name = split_path(path)
            value = of_layer(given, index)
            if value is not KEEP and (not component or _named(slot, raw[slot].get("name"), component)):
                raw[slot][name] = value
        identity = repr(raw)
        if identity not in layers:
            slots: PlainDict = {slot: encode(decode(slot, raw[slot])) for slot in SLOTS}
            layer = {**slots, BLOCK: {"topology": "pre", **raw[BLOCK]}}
            layers[identity] = layers.setdefault(repr(layer), layer)
        found.append(layers[identity])
    return found


def _named(slot: str, name: Any, component: str) -> bool:
    return isinstance(name, str) and issubclass(lookup(slot, name).component, lookup(slot, component).component)
