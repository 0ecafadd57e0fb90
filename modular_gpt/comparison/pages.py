"""Inspection pages of the trained model of each variant, next to the report."""

import re
from collections.abc import Iterable
from pathlib import Path

from modular_gpt.checkpoint import load_model
from modular_gpt.comparison.plan import Plan
from modular_gpt.comparison.trial import text_of
from modular_gpt.core.errors import UserError
from modular_gpt.inspection import write_page
from modular_gpt.training.config import RunConfig

TOKENS = 96  # tokens that the models read, from the beginning of the validation text


def model_directory(directory: Path, variant: str) -> Path:
    """The directory in which the model of a variant is saved."""
    return directory / f"model-{file_name(variant)}"


def page_name(variant: str) -> str:
    """The name of the file with a variant's page."""
    return f"inspect-{file_name(variant)}.html"


def file_name(variant: str) -> str:
    """A variant's name with characters that a file's name can have."""
    return re.sub(r"[^\w.+=-]+", "_", variant)


def write_pages(plan: Plan, directory: Path) -> None:
    """Write the page of every variant whose model was saved, unless it is there."""
    data, tokenizer = text_of(RunConfig.from_dict(plan.variants[plan.baseline]))
    text = tokenizer.decode(data.prompt(TOKENS), errors="ignore")
    for variant in plan.variants:
        path, saved = directory / page_name(variant), model_directory(directory, variant)
        if saved.is_dir() and not path.is_file():
            try:
                write_page(load_model(saved).model, tokenizer, text, path, title=variant)
            except UserError:  # the attention lacks tensors that the page shows
                continue


def pages_in(directory: Path, variants: Iterable[str]) -> dict[str, str]:
    """The names of the existing pages, by variant."""
    return {variant: page_name(variant) for variant in variants if (directory / page_name(variant)).is_file()}
