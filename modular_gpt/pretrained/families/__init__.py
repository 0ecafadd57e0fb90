"""The published families that can be read, one file each. Importing this package imports its own folder."""

import importlib
import pkgutil

from modular_gpt.pretrained.family import Family

_modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY for module in _modules if hasattr(module, "FAMILY")
}
