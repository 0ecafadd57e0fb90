"""Every mistake gets one sentence with the error and the remedy."""

from typing import Any

import pytest
import torch

from modular_gpt import ConfigError
from modular_gpt.generation import Generation, GenerationConfig, complete, generate
from tests.generation.models import prompts, tiny


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0.*greedy=true"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p must lie"),
        ({"typical_p": 0.0}, "typical_p must lie"),
        ({"min_p": -0.1}, r"min_p must lie in \[0, 1\]"),
        ({"top_k": 0}, "top_k must be 1 or more"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram must be 1 or more"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty must be a finite"),
        ({"logit_bias": {13: 1.0}}, "ids run from 0 to 12"),
        ({"logit_bias": {"x": 1.0}}, "logit_bias maps token ids to numbers"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias of token 1"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"max_new_tokens": -1}, "max_new_tokens must be 0 or more"),
        ({"num_return_sequences": 0}, "num_return_sequences must be 1 or more"),
        ({"num_return_sequences": 2, "greedy": True}, "would all be the same text"),
        ({"num_return_sequences": 5, "strategy": "beam"}, "need as many beams"),
        ({"stop_tokens": [13]}, "ids run from 0 to 12"),
        ({"stop_tokens": ["x"]}, "stop_tokens names token 'x'"),
        ({"stop": [""]}, "at least one character"),
        ({"stop": ["end"]}, "stop strings need a tokenizer"),
        ({"overflow": "wrap"}, "no choice 'wrap'"),
        ({"strategy": "beams"}, "did you mean 'beam'"),
        ({"strategy": "beam", "temperature": 0.5}, "strategy=beam has no use for temperature"),
        ({"strategy": "beam", "stop": ["a"]}, "strategy=beam has no use for stop"),
        ({"strategy": "contrastive", "seed": 1}, "has no use for seed"),
        ({"strategy": "lookup", "compile": True}, "has no use for compile"),
        ({"num_beams": 3}, "strategy=sample has no use for num_beams"),
        ({"contrastive_alpha": 1.5, "strategy": "contrastive"}, "contrastive_alpha must lie"),
        ({"strategy": "speculative"}, "needs a draft model"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    settings = {"max_new_tokens": 3, **settings}
    with pytest.raises(ConfigError, match=message) as caught:
        generate(tiny(), prompts(), settings.pop("max_new_tokens"), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "padding", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), None, "prompt is empty"),
        (torch.zeros(0, 3, dtype=torch.long), None, "prompt is empty"),
        (torch.tensor([[1, 2]]), torch.tensor([2]), "prompt is empty"),
        (torch.tensor([[1, 13]]), None, "has token 13, but the model's ids run from 0 to 12"),
        (torch.tensor([[-1, 2]]), None, "has token -1"),
        (torch.tensor([1, 2]), None, r"shape \(batch, tokens\)"),
        (torch.tensor([[1.0]]), None, "whole token ids"),
        (torch.tensor([[1, 2]]), torch.tensor([1, 0]), "padding gives the leading columns"),
    ],
)
def test_invalid_prompts(ids: torch.Tensor, padding: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(tiny(), ids, 3, padding=padding)


def test_no_prompts_at_all() -> None:
    with pytest.raises(ConfigError, match="empty"):
        complete(tiny(), [], GenerationConfig())


def test_a_draft_model_must_fit_and_be_used() -> None:
    with pytest.raises(ConfigError, match="has no use for a draft"):
        generate(tiny(), prompts(), 3, draft=tiny())
    with pytest.raises(ConfigError, match="draft model has 7 tokens and the model 13"):
        generate(tiny(), prompts(), 3, strategy="speculative", draft=tiny(vocab_size=7))


def test_a_search_cannot_be_streamed() -> None:
    with pytest.raises(ConfigError, match="cannot be streamed"):
        iter(Generation(tiny(), prompts(), GenerationConfig(strategy="beam")))


@pytest.mark.parametrize("pos", ["learned", "sinusoidal"])
@pytest.mark.parametrize("length", [5, 9])
def test_positions_that_end_refuse_longer_texts_before_anything_is_computed(pos: str, length: int) -> None:
    with pytest.raises(ConfigError, match=r"context of 8, and its positions cannot slide .*overflow=window"):
        generate(tiny(pos=pos, context_length=8), prompts(1, length), 5)
    assert generate(tiny(pos=pos, context_length=8), prompts(1, 4), 5).shape == (1, 9)  # the last token is never read


def test_overflow_error_applies_to_all_positions() -> None:
    with pytest.raises(ConfigError, match="make 9 tokens, but the model has a context of 8"):
        generate(tiny(context_length=8), prompts(1, 5), 5, overflow="error")


def test_the_settings_are_a_hydra_schema() -> None:
    from omegaconf import OmegaConf

    schema = OmegaConf.structured(GenerationConfig)
    changed = OmegaConf.merge(schema, {"top_k": 5, "stop": ["a"], "logit_bias": {3: 1.5}})
    assert OmegaConf.to_object(changed) == GenerationConfig(top_k=5, stop=["a"], logit_bias={3: 1.5})
