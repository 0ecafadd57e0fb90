"""Two-way mappings of models whose layers are of two sorts, such as those with and without a window."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from modular_gpt.core.errors import CheckpointError, UserError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.mapping.hf_config import HFConfig
from modular_gpt.mapping.setting_map import (
    KEEP,
    WRONG_VALUE,
    Keys,
    KeyTree,
    ModelView,
    PerLayer,
    joined,
    layer_count,
    of_layer,
)

Pattern = Callable[[int, HFConfig], object]  # (number of a layer from 0, keys) -> whether it is of the first sort


class Flags(NamedTuple):
    """Whether each layer is of the first of two sorts.

    from_hf: keys -> flags; to_hf: flags -> keys
    """

    from_hf: Callable[[HFConfig], Sequence[object]]
    to_hf: Callable[[list[bool]], PlainMapping] = lambda has: {}


def by_number(pattern: Pattern, to_hf: Callable[[list[bool]], PlainMapping] = lambda has: {}) -> Flags:
    """Flags by the numbers of the layers."""
    return Flags(lambda settings: [pattern(i, settings) for i in range(layer_count(settings))], to_hf)


def by_names(hf_name: str, names: tuple[Any, Any], pattern: Pattern, otherwise: Sequence[str] = ()) -> Flags:
    """Flags by a key with a list of the names of both sorts; without it, by the pattern.

    otherwise: keys that can matter only without the list
    """

    def read(settings: HFConfig) -> Sequence[object]:
        given = layer_values(settings, hf_name)
        settings.ignore(*otherwise)
        for name in given or ():
            if name not in names:
                raise CheckpointError(unknown("layer type", str(name), [str(known) for known in names]))
        return [name == names[0] for name in given] if given else by_number(pattern).from_hf(settings)

    return Flags(read, lambda has: {hf_name: [names[0] if first else names[1] for first in has]})


def layer_values(settings: HFConfig, hf_name: str) -> list[Any] | None:
    """The list under a key, with a value for each layer; None: it is null, empty or absent.

    Raises:
        CheckpointError: it has another length.
    """
    given, count = settings.get(hf_name) or None, layer_count(settings)
    if given is not None and len(given) != count:
        raise CheckpointError(f"{hf_name} has {len(given)} layers, but the model has {count}")
    return given if given is None else list(given)


def layers(flags: Flags, yes: KeyTree, no: KeyTree = (), mark: str = "") -> Keys:
    """Mappings of two sorts of layers.

    flags: which layers are of the first sort; yes, no: mappings of the two sorts
    mark: a setting that only the first sort has; without one, nothing is written
    """
    sides = {False: joined(no), True: joined(yes)}

    def read(settings: HFConfig) -> PlainDict:
        has = [bool(flag) for flag in flags.from_hf(settings)]
        found = {sort: _read_side(side, settings, used=sort in has) for sort, side in sides.items()}
        paths = dict.fromkeys(path for side in found.values() for path in side)
        return {
            path: PerLayer(of_layer(found[sort].get(path, KEEP), i) for i, sort in enumerate(has)) for path in paths
        }

    def write(view: ModelView) -> PlainDict:
        has = [value is not None for value in view.each(mark)]
        views = {sort: view.of_layers(flag is sort for flag in has) for sort in sides}
        written = {sort: side.to_hf(views[sort]) for sort, side in sides.items() if views[sort].layers}
        return {**flags.to_hf(has), **{name: value for side in written.values() for name, value in side.items()}}

    return Keys(read, write if mark else lambda view: {})


def _read_side(side: Keys, settings: HFConfig, used: bool) -> PlainMapping:
    """The settings of one sort of layers; where no layer is of it, its keys are read, and may have any value."""
    with suppress(*(() if used else (UserError, *WRONG_VALUE))):
        return side.from_hf(settings)
    return {}
