"""Models of ``transformers`` and the models read from their folders, built once for all tests of a model."""

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


class ModelPair:
    """A model of transformers, its folder, the ``GPTModel`` read from it, token ids (2, T), and the logits of both."""

    def __init__(self, model_type: str, hf_model: Any, tokens: Tensor) -> None:
        self.model_type, self.hf_model, self.tokens = model_type, hf_model, tokens
        self._directory = tempfile.TemporaryDirectory()
        self.folder = Path(self._directory.name)
        hf_model.save_pretrained(self.folder)

    @cached_property
    def model(self) -> GPTModel:
        return load_pretrained(self.folder)

    @cached_property
    @torch.no_grad()
    def hf_logits(self) -> Tensor:
        logits: Tensor = self.hf_model(self.tokens, use_cache=False).logits
        return logits

    @cached_property
    @torch.no_grad()
    def logits(self) -> Tensor:
        logits: Tensor = self.model(self.tokens)
        return logits

    @cached_property
    def all_settings(self) -> dict[str, Any]:
        """The content of config.json, with every key that transformers knows."""
        content: dict[str, Any] = json.loads(self.hf_model.config.to_json_string(use_diff=False))
        return content | json.loads((self.folder / "config.json").read_text())

    def hf_model_in_bfloat16(self) -> Any:
        """A copy of the model of transformers in bfloat16, as loading gives it: rotary frequencies stay in float32."""
        rounded = copy.deepcopy(self.hf_model).bfloat16()
        rounded.config._experts_implementation = "eager"  # grouped_mm requires rows of 16 bytes
        buffers = dict(self.hf_model.named_buffers())
        for name, buffer in rounded.named_buffers():
            if "inv_freq" in name:
                buffer.data = buffers[name].data
        return rounded


def model_pair(model_type: str, case: str, init: str = "strong init") -> ModelPair:
    """Return the pair of one of the ``CASES``, with the initialisation of transformers or with strong weights."""
    return _of_both_inits(model_type, case)[init]


@lru_cache(maxsize=1)  # conftest.py runs the tests of a model consecutively
def _of_both_inits(model_type: str, case: str) -> dict[str, ModelPair]:
    torch.manual_seed(0)  # the same weights whichever test is first
    own = reference(model_type, CASES[model_type][case], strong=False)
    strong = copy.deepcopy(own)
    strengthen(strong)
    tokens = ids(own.config.vocab_size)
    return {init: ModelPair(model_type, hf_model, tokens) for init, hf_model in zip(INITS, (own, strong), strict=True)}


def loaded_by_transformers(folder: Path, **load_options: Any) -> Any:
    """Return the model in evaluation mode; check that the folder has all its weights and no others."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = json.loads((folder / "config.json").read_text())
    eager = {} if config.get("alibi") else {"attn_implementation": "eager"}  # Falcon's eager attention adds ALiBi twice
    architecture = getattr(transformers, config["architectures"][0])
    model, report = architecture.from_pretrained(folder, output_loading_info=True, **eager, **load_options)
    assert not any(report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()
