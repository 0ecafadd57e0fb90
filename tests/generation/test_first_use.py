"""Common mistakes in first Python calls: they work where unambiguous, else one sentence names the remedy."""

import pytest
import torch

import modular_gpt.training  # noqa: F401  registers optimizers and schedules
from modular_gpt import GPTConfig, GPTModel, LayersConfig, LossConfig, generate
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import entries
from modular_gpt.generation import GenerationConfig, complete

MODEL = GPTModel(vocab_size=65, d_model=16, n_heads=2, n_layers=1, context_length=16)
IDS = torch.zeros(1, 4, dtype=torch.long)


@pytest.mark.parametrize("batch", [0, -1, 1.5, None, True, "1"])
def test_the_rows_of_a_cache_are_validated(batch: object) -> None:
    with pytest.raises(ConfigError, match=r"batch of a cache must be a whole number of 1 or more, got"):
        MODEL.new_cache(batch=batch)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("max_length", -1), ("max_length", 2.0), ("window", 0)])
def test_the_length_of_a_cache_is_validated(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} of a cache must be a whole number"):
        MODEL.new_cache(1, **{name: value})


@pytest.mark.parametrize("draft", ["gpt2", 3, (MODEL, None)])
def test_the_draft_must_be_a_model(draft: object) -> None:
    with pytest.raises(ConfigError, match=r"draft must be a model, got .*modular_gpt.load_model"):
        MODEL.generate(IDS, 2, strategy="speculative", draft=draft)
    with pytest.raises(ConfigError, match="model must be a model, got 'gpt2'"):
        generate("gpt2", IDS, 2)  # type: ignore[arg-type]


def test_log_probabilities_are_not_dropped_silently() -> None:
    with pytest.raises(ConfigError, match=r"leave out logprobs, or call generation\.complete"):
        MODEL.generate(IDS, 2, logprobs=True)
    [[text]] = complete(MODEL, [[1, 2]], GenerationConfig(max_new_tokens=2, logprobs=True))
    assert len(text.logprobs or ()) == 2


@pytest.mark.parametrize("name", ["stop_tokens", "suppress_tokens"])
def test_ids_in_any_collection(name: str) -> None:
    expected = MODEL.generate(IDS, 6, seed=0, **{name: [7, 8]})
    for same in ((7, 8), {7, 8}, frozenset({7, 8}), range(7, 9), torch.tensor([7, 8]).numpy()):
        assert torch.equal(MODEL.generate(IDS, 6, seed=0, **{name: same}), expected)
    assert torch.equal(MODEL.generate(IDS, 6, seed=0, **{name: 7}), MODEL.generate(IDS, 6, seed=0, **{name: [7]}))


def test_stop_strings_in_any_collection() -> None:
    for same in ("ab", ("ab",), {"ab"}, ["ab"]):
        assert GenerationConfig(stop=same).checked(65).stop == ["ab"]  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"temperature": "x"}, {"top_k": 1.5}, {"logit_bias": [1]}, {"strategy": 3}])
def test_the_message_about_a_wrong_type_names_the_setting(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(settings))} must be "):
        MODEL.generate(IDS, 2, **settings)


def test_a_misspelt_keyword_of_any_settings_gets_one_sentence() -> None:
    settings = [GPTConfig, LayersConfig, LossConfig, GenerationConfig]
    settings += [entry.component.Config for slot in ("attention", "ffn", "norm", "pos", "optim", "schedule")
                 for entry in entries(slot).values()]  # fmt: skip
    for config in settings:
        with pytest.raises(ConfigError, match="no setting 'strange_one'"):
            config(strange_one=1)
    with pytest.raises(ConfigError, match="GPTConfig: no setting 'n_embd'; it is d_model here"):
        GPTConfig(n_embd=16)  # type: ignore[call-arg]


def test_a_setting_of_another_component_is_refused_by_the_name_in_use() -> None:
    for config in ({"attention": {"name": "gqa", "latent_dim": 8}}, {"attention": "gqa", "latent_dim": 8}):
        with pytest.raises(ConfigError, match=r"attention=gqa has no setting '?latent_dim.*use it with mla"):
            GPTModel(config)
