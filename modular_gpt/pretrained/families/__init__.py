"""Families of published models, in tables: one file for each group of relatives.

Importing this package imports all of them. The order is that in which saving looks for a family.
"""

from modular_gpt.core.registry import import_folder
from modular_gpt.pretrained.family import Family

_FIRST = ("gpt2", "llama", "mistral", "qwen2", "qwen3")  # preferred where several families compute the same
_ALL = [family for module in import_folder(__name__, __path__) for family in getattr(module, "FAMILIES", ())]

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in sorted(_ALL, key=lambda family: family.model_type not in _FIRST)
}
