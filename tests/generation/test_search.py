"""Beam search equals an exhaustive search and transformers; contrastive search equals its definition."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt import GPTModel
from modular_gpt.generation import GenerationConfig, complete, generate
from tests.generation.models import PAIRS, prompts, tiny

V, NEW, STOP = 4, 4, 2


@torch.no_grad()
def all_texts(model: GPTModel, prompt: list[int], penalty: float, stop: int | None) -> list[tuple[float, list[int]]]:
    """Every text of NEW tokens, or up to a stop token, with its score, best first."""
    found = {}
    for text in itertools.product(range(V), repeat=NEW):
        end = text.index(stop) + 1 if stop in text else NEW
        found[text[:end]] = 0.0
    for text in found:
        scores = model(torch.tensor([[*prompt, *text]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
        total = scores.gather(1, torch.tensor(text)[:, None]).sum().item()
        found[text] = total / len(text) ** penalty
    return sorted(((score, list(text)) for text, score in found.items()), reverse=True)


@pytest.mark.parametrize("stop", [None, STOP])
@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.5, 3.0])
def test_with_enough_beams_it_finds_the_best_texts(penalty: float, stop: int | None) -> None:
    model = tiny(vocab_size=V, init_std=0.5)
    settings = GenerationConfig(
        max_new_tokens=NEW,
        strategy="beam",
        num_beams=V**NEW,
        num_return_sequences=20,
        length_penalty=penalty,
        stop_tokens=[] if stop is None else [stop],
    )
    texts = [[1], [3, 0, 1, 2]]  # ragged
    for prompt, found in zip(texts, complete(model, texts, settings), strict=True):
        best = all_texts(model, prompt, penalty, stop)[:20]
        assert [text.ids for text in found] == [ids for _, ids in best]
        assert [text.score for text in found] == pytest.approx([score for score, _ in best], abs=1e-4)
        reasons = ["token" if ids[-1] == stop else "length" for _, ids in best]
        assert [text.reason for text in found] == reasons


def test_fewer_texts_exist_than_requested() -> None:
    settings = GenerationConfig(max_new_tokens=1, strategy="beam", num_beams=10, num_return_sequences=10)
    [found] = complete(tiny(vocab_size=V), [[1, 2]], settings)
    assert sorted(text.ids for text in found) == [[token] for token in range(V)]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("stops", [0, 1])
def test_beams_equal_those_of_transformers(penalty: float, stops: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny(pos="learned", ffn={"name": "mlp", "activation": "gelu_tanh"}, tie_embeddings=True, d_model=32)
    from modular_gpt.pretrained import save_pretrained

    save_pretrained(model, tmp_path)
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = prompts(3)
    settings = GenerationConfig(
        max_new_tokens=10,
        strategy="beam",
        num_beams=4,
        num_return_sequences=3,
        length_penalty=penalty,
        stop_tokens=[5][:stops],
    )
    completions = complete(model, ids.tolist(), settings)
    out = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        num_beams=4,
        num_return_sequences=3,
        do_sample=False,
        length_penalty=penalty,
        early_stopping="never",
        eos_token_id=5 if stops else None,
        bos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    found = [text for texts in completions for text in texts]
    for text, row, score in zip(found, out.sequences[:, 6:].tolist(), out.sequences_scores.tolist(), strict=True):
        assert text.ids == row[: len(text.ids)]
        assert all(token in (0, 5) for token in row[len(text.ids) :])  # transformers pads ended rows
        assert text.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_scores_equal_those_of_full_passes(attention: str, pos: str) -> None:
    """Wrongly reordered cache rows would give scores that differ from a full pass over the text."""
    model = tiny(attention, pos)
    settings = GenerationConfig(
        max_new_tokens=12, strategy="beam", num_beams=3, num_return_sequences=3, stop_tokens=[7]
    )
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    for prompt, found in zip(texts, complete(model, texts, settings), strict=True):
        assert len({tuple(text.ids) for text in found}) == 3
        for text in found:
            scores = model(torch.tensor([prompt + text.ids])).log_softmax(-1)[0, len(prompt) - 1 : -1]
            total = scores.gather(1, torch.tensor(text.ids)[:, None]).sum().item()
            assert text.score == pytest.approx(total / len(text.ids), abs=1e-4)


def test_one_beam_is_greedy() -> None:
    model, ids = tiny(), prompts()
    rules = {"no_repeat_ngram": 3, "repetition_penalty": 1.3}
    beam = generate(model, ids, 20, strategy="beam", num_beams=1, **rules)
    assert torch.equal(beam, generate(model, ids, 20, greedy=True, **rules))


@torch.no_grad()
def contrastive_reference(model: GPTModel, ids: Tensor, count: int, k: int, alpha: float) -> Tensor:
    """Reference: the definition, without a cache, one text at a time."""
    for _ in range(count):
        probabilities = model(ids)[0, -1].softmax(-1)
        scores = {}
        for token in probabilities.topk(k).indices.tolist():
            states, _ = model.hidden_states(torch.cat([ids, torch.tensor([[token]])], dim=1))
            likeness = F.cosine_similarity(states[0, -1:], states[0, :-1]).max().item()
            scores[token] = (1 - alpha) * probabilities[token].item() - alpha * likeness
        ids = torch.cat([ids, torch.tensor([[max(scores, key=lambda token: scores[token])]])], dim=1)
    return ids


@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_contrastive_search_equals_its_definition(attention: str, pos: str) -> None:
    model, texts = tiny(attention, pos), [[1, 2, 3], [4, 5, 6, 7, 8]]
    settings = GenerationConfig(max_new_tokens=10, strategy="contrastive", contrastive_candidates=3)
    for prompt, [text] in zip(texts, complete(model, texts, settings), strict=True):
        expected = contrastive_reference(model, torch.tensor([prompt]), 10, 3, 0.6)
        assert prompt + text.ids == expected[0].tolist()


def test_contrastive_search_without_penalty_is_greedy() -> None:
    model, ids = tiny(), prompts()
    found = generate(model, ids, 20, strategy="contrastive", contrastive_alpha=0.0)
    assert torch.equal(found, generate(model, ids, 20, greedy=True))
