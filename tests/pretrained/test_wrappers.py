"""Of a multimodal model, the language model is read, as a model of its own family."""

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
# model type -> (case of its language model, settings of the image encoder)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("windows", {"vision_config": SMALL, "mm_tokens_per_image": 4}),
    "internvl": ("plain", {"vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]}}),
    "llama4": ("chunks", {"vision_config": {**SMALL, "vision_output_dim": 16, "projector_output_dim": 16}}),
    "llava": ("gqa", {"vision_config": {**SMALL, "model_type": "clip_vision_model"}}),
    "mistral3": ("window", {"vision_config": {**SMALL, "model_type": "pixtral"}}),
    "qwen3_5": ("plain", {"vision_config": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}}),
}


def save_wrapper(model_type: str, folder: Path) -> Any:
    """Return a multimodal model of transformers with strong weights, saved in ``folder``."""
    import transformers

    transformers.logging.set_verbosity_error()
    case, settings = MODELS[model_type]
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    text = {"model_type": WRAPPERS[model_type], **special, **CASES[WRAPPERS[model_type]][case]}
    config = transformers.AutoConfig.for_model(model_type, text_config=text, **settings)
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    strengthen(model)
    model.save_pretrained(folder)
    return model


def test_every_wrapper_has_a_case() -> None:
    assert set(MODELS) == set(WRAPPERS)


@pytest.mark.parametrize("model_type", MODELS)
@torch.no_grad()
def test_the_language_model_of_a_wrapper_is_read(model_type: str, tmp_path: Path) -> None:
    hf_model = save_wrapper(model_type, tmp_path / "hf")
    with pytest.warns(
        UserWarning, match=f"model_type={model_type}: only its language model, {WRAPPERS[model_type]}, is read"
    ):
        model = load_pretrained(tmp_path / "hf")
    tokens = ids(61)
    assert difference(model(tokens), hf_model(input_ids=tokens).logits) < 2e-5
    save_pretrained(model, tmp_path / "written", model_type=WRAPPERS[model_type])
    assert torch.equal(load_pretrained(tmp_path / "written")(tokens), model(tokens))


@pytest.mark.filterwarnings("ignore:.*only its language model")
@torch.no_grad()
def test_both_orders_of_the_name_prefixes_are_read(tmp_path: Path) -> None:
    """Files name tensors ``language_model.model.`` or ``model.language_model.``."""
    hf_model = save_wrapper("mistral3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    swapped = {
        name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head"): t
        for name, t in tensors.items()
    }
    assert swapped.keys() != tensors.keys() and len(swapped) == len(tensors)
    save_file(swapped, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokens = ids(61)
    assert difference(load_pretrained(tmp_path)(tokens), hf_model(input_ids=tokens).logits) < 2e-5


@pytest.mark.filterwarnings("ignore:.*only its language model")
def test_a_tied_head_of_the_outer_config_is_read(tmp_path: Path) -> None:
    save_wrapper("llava", tmp_path)
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
