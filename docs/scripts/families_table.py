"""The published families that can be read and written; tables.py writes the table into docs/pretrained.md."""

import importlib

from modular_gpt.pretrained import FAMILIES

HEAD = ["family", "`model_type`", "in transformers", "read", "written"]


def title(model_type: str) -> str:
    """The name of a family and the link to its paper, from the first line of its file."""
    module = importlib.import_module(f"modular_gpt.pretrained.families.{model_type}")
    name, _, link = (module.__doc__ or "").strip().splitlines()[0].partition(": ")
    return f"[{name}]({link.strip()})"


def rows() -> list[list[str]]:
    return [
        [title(model_type), f"`{model_type}`", f"`{family.architecture}`", "yes", "yes" if family.to_hf else "no"]
        for model_type, family in FAMILIES.items()
    ]
