"""Modules and names by their former paths, since version 0.1.0."""

import importlib
import sys

import pytest

from modular_gpt.core.former_modules import FORMER, NAMES, FormerModules, install


@pytest.mark.parametrize("former", FORMER)
def test_a_former_path_gives_the_current_module(former: str) -> None:
    module = importlib.import_module(f"modular_gpt.{former}")
    today = importlib.import_module(f"modular_gpt.{FORMER[former]}")
    assert today.__name__ == f"modular_gpt.{FORMER[former]}" == today.__spec__.name  # the spec is unchanged
    if former not in NAMES:
        assert module is today
    for name, value in vars(today).items():
        if not name.startswith("__"):
            assert getattr(module, name) is value, name
    parent, _, leaf = f"modular_gpt.{former}".rpartition(".")
    assert getattr(sys.modules[parent], leaf) is module


@pytest.mark.parametrize(("former", "name"), [(former, name) for former, names in NAMES.items() for name in names])
def test_a_former_name_gives_the_current_object(former: str, name: str) -> None:
    place = NAMES[former][name]
    elsewhere, _, present = place.rpartition(":")
    today = importlib.import_module(f"modular_gpt.{elsewhere or FORMER[former]}")
    assert getattr(importlib.import_module(f"modular_gpt.{former}"), name) is getattr(today, present)


def test_a_module_that_became_a_package_is_the_package() -> None:
    import modular_gpt.checkpoint
    import modular_gpt.generation.strategies
    import modular_gpt.model
    from modular_gpt.checkpoint import load_checkpoint
    from modular_gpt.generation.strategies import Sampling, Strategy
    from modular_gpt.model import GPTModel
    from modular_gpt.training.lora import LoraSettings

    assert all(hasattr(room, "__path__") for room in (modular_gpt.checkpoint, modular_gpt.model))
    assert callable(load_checkpoint) and issubclass(Sampling, Strategy) and GPTModel and LoraSettings
    assert not {"model", "checkpoint", "generation.strategies"} & FORMER.keys()


def test_no_table_entry_hides_a_current_module() -> None:
    from importlib.machinery import PathFinder

    for former in FORMER:
        parent, _, _ = f"modular_gpt.{former}".rpartition(".")
        if parent.removeprefix("modular_gpt.") not in FORMER:
            folder = list(importlib.import_module(parent).__path__)
            assert PathFinder.find_spec(f"modular_gpt.{former}", folder) is None, former


def test_installing_again_changes_nothing() -> None:
    finders = list(sys.meta_path)
    install()
    assert sys.meta_path == finders and sum(isinstance(finder, FormerModules) for finder in finders) == 1
    with pytest.raises(ModuleNotFoundError, match=r"modular_gpt\.never"):
        importlib.import_module("modular_gpt.never")


def test_public_names_are_imported_lazily() -> None:
    import modular_gpt

    for name in modular_gpt.__all__:
        assert getattr(modular_gpt, name) is getattr(modular_gpt, name), name
    assert callable(modular_gpt.train) and callable(modular_gpt.generate) and callable(modular_gpt.load_model)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        modular_gpt.nothing  # noqa: B018
