"""Published families that can be read, one file each; importing this package imports all of them."""

from modular_gpt.core.registry import import_folder
from modular_gpt.pretrained.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY for module in import_folder(__name__, __path__) if hasattr(module, "FAMILY")
}
