"""Models of ``transformers`` and what is read of them, built once for all tests of the same model."""

import copy
import json
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modular_gpt import GPTModel
from modular_gpt.pretrained import load_pretrained
from tests.reference.cases import CASES, ids, reference, strengthen

INITS = ("own init", "strong init")


class Published:
    """A model of transformers, its folder, our model of it, tokens (2, T), and the logits of both."""

    def __init__(self, kind: str, model: Any, tokens: Tensor) -> None:
        self.kind, self.theirs, self.tokens = kind, model, tokens
        self._directory = tempfile.TemporaryDirectory()
        self.folder = Path(self._directory.name)
        model.save_pretrained(self.folder)

    @cached_property
    def ours(self) -> GPTModel:
        return load_pretrained(self.folder)

    @cached_property
    @torch.no_grad()
    def logits(self) -> Tensor:
        out: Tensor = self.theirs(self.tokens, use_cache=False).logits
        return out

    @cached_property
    @torch.no_grad()
    def our_logits(self) -> Tensor:
        out: Tensor = self.ours(self.tokens)
        return out

    @cached_property
    def all_settings(self) -> dict[str, Any]:
        """Its config.json, with every key that transformers knows."""
        content: dict[str, Any] = json.loads(self.theirs.config.to_json_string(use_diff=False))
        return content | json.loads((self.folder / "config.json").read_text())

    def in_bfloat16(self) -> Any:
        """Their model in bfloat16 as it is loaded: tables of frequencies stay in float32."""
        rounded = copy.deepcopy(self.theirs).bfloat16()
        rounded.config._experts_implementation = "eager"  # grouped_mm wants rows of 16 bytes
        exact = dict(self.theirs.named_buffers())
        for name, buffer in rounded.named_buffers():
            if "inv_freq" in name:
                buffer.data = exact[name].data
        return rounded


def published(kind: str, case: str, init: str = "strong init") -> Published:
    """The model of one of the ``CASES``, with its own initialisation or with strong weights."""
    return _both(kind, case)[init]


@lru_cache(maxsize=1)  # conftest.py puts the tests of a model after each other
def _both(kind: str, case: str) -> dict[str, Published]:
    torch.manual_seed(0)  # the same weights whichever test comes first
    own = reference(kind, CASES[kind][case], strong=False)
    strong = copy.deepcopy(own)
    strengthen(strong)
    tokens = ids(own.config.vocab_size)
    return {name: Published(kind, model, tokens) for name, model in zip(INITS, (own, strong), strict=True)}


def loaded_by_transformers(folder: Path, **how: Any) -> Any:
    """The model, with every weight taken from the folder."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = json.loads((folder / "config.json").read_text())
    eager = {} if config.get("alibi") else {"attn_implementation": "eager"}  # where Falcon adds its biases twice
    architecture = getattr(transformers, config["architectures"][0])
    model, report = architecture.from_pretrained(folder, output_loading_info=True, **eager, **how)
    assert not any(report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()
