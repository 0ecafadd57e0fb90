"""Of a model with an encoder of images, the language model is read as a model of its own family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modular_gpt import CheckpointError
from modular_gpt.pretrained import load_pretrained, save_pretrained
from modular_gpt.pretrained.wrappers import WRAPPERS
from tests.reference.cases import CASES, ids, strengthen
from tests.reference.conftest import difference

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {**VISION, "image_size": 28, "patch_size": 14}
# model type -> case of its language model, and the settings of the encoder
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("windows", {"vision_config": SMALL, "mm_tokens_per_image": 4}),
    "internvl": ("plain", {"vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]}}),
    "llama4": ("chunks", {"vision_config": {**SMALL, "vision_output_dim": 16, "projector_output_dim": 16}}),
    "llava": ("gqa", {"vision_config": {**SMALL, "model_type": "clip_vision_model"}}),
    "mistral3": ("window", {"vision_config": {**SMALL, "model_type": "pixtral"}}),
    "qwen3_5": ("plain", {"vision_config": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}}),
}


def wrapper(kind: str, folder: Path) -> Any:
    """A model of transformers with its language model in ``text_config``, and strong weights, saved in ``folder``."""
    import transformers

    transformers.logging.set_verbosity_error()
    case, settings = MODELS[kind]
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    text = {"model_type": WRAPPERS[kind], **special, **CASES[WRAPPERS[kind]][case]}
    config = transformers.AutoConfig.for_model(kind, text_config=text, **settings)
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    strengthen(model)
    model.save_pretrained(folder)
    return model


def test_every_wrapper_has_a_model() -> None:
    assert set(MODELS) == set(WRAPPERS)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_the_language_model_is_read(kind: str, tmp_path: Path) -> None:
    theirs = wrapper(kind, tmp_path / "theirs")
    with pytest.warns(UserWarning, match=f"model_type={kind}: only its language model, {WRAPPERS[kind]}, is read"):
        ours = load_pretrained(tmp_path / "theirs")
    tokens = ids(61)
    assert difference(ours(tokens), theirs(input_ids=tokens).logits) < 2e-5
    save_pretrained(ours, tmp_path / "ours", model_type=WRAPPERS[kind])
    assert torch.equal(load_pretrained(tmp_path / "ours")(tokens), ours(tokens))


@pytest.mark.filterwarnings("ignore:.*only its language model")
@torch.no_grad()
def test_other_names_of_tensors(tmp_path: Path) -> None:
    """In files, the prefix of the language model stands before or behind that of its layers."""
    theirs = wrapper("mistral3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    swapped = {
        name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head"): one
        for name, one in tensors.items()
    }
    assert swapped.keys() != tensors.keys() and len(swapped) == len(tensors)
    save_file(swapped, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokens = ids(61)
    assert difference(load_pretrained(tmp_path)(tokens), theirs(input_ids=tokens).logits) < 2e-5


@pytest.mark.filterwarnings("ignore:.*only its language model")
def test_the_outer_config_may_tie_the_head(tmp_path: Path) -> None:
    wrapper("llava", tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    assert not load_pretrained(tmp_path).config.tie_embeddings
    (tmp_path / "config.json").write_text(json.dumps({**given, "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' differs from 'model.embed_tokens.weight'"):
        load_pretrained(tmp_path)
    for change, sentence in (
        ({"text_config": [1]}, "text_config in config.json of .* must be an object"),
        ({"text_config": {"model_type": "gemmma"}}, "the language model of .*: no architecture 'gemmma'; did you mean"),
        ({"quantization_config": {"bits": 4}}, "is quantised, which is not supported"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**given, **change}))
        with pytest.raises(CheckpointError, match=sentence):
            load_pretrained(tmp_path)
