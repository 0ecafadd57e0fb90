"""Prompts begin with exactly one beginning-of-text token; any end-of-text token stops generation."""

from typing import Any

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.checkpoint.resolve import Loaded
from modular_gpt.cli import text_writer
from modular_gpt.cli.repl import Conversation
from modular_gpt.cli.text_writer import Writer
from modular_gpt.data.tokenizers.byte import ByteTokenizer
from modular_gpt.generation import Generation, GenerationConfig

BOS = 1


class Published(ByteTokenizer):
    """Bytes, one beginning-of-text and three end-of-text tokens, as in tokenizers of published models."""

    bos_id, eos_id, _end_ids = BOS, 2, (3, 4)


class Recorded(Generation):
    """Records the prompts and the settings of every run."""

    runs: list[tuple[list[int], GenerationConfig]]

    def __init__(self, model: Any, ids: torch.Tensor, settings: GenerationConfig, **rest: Any) -> None:
        super().__init__(model, ids, settings, **rest)
        self.runs.append((ids[0].tolist(), settings))


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    monkeypatch.setattr(Recorded, "runs", [], raising=False)
    monkeypatch.setattr(text_writer, "Generation", Recorded)
    torch.manual_seed(0)
    model = GPTModel(vocab_size=4000, d_model=16, n_heads=2, n_layers=1, context_length=64)
    return Writer(Loaded(model, Published()))


def test_a_prompt(writer: Writer) -> None:
    writer.write(writer.encode("ab"), GenerationConfig(max_new_tokens=2), lambda _: None)
    writer.write(writer.encode(""), GenerationConfig(max_new_tokens=2, stop_tokens=[9]), lambda _: None)
    (first, _), (empty, settings) = Recorded.runs
    assert first == [BOS, *b"ab"] and empty == [BOS]
    assert settings.stop_tokens == [9, 2, 3, 4]


def test_a_conversation(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(writer, GenerationConfig(max_new_tokens=3, greedy=True), lambda _: None)
    for line in ("ab", "cd", "clear", "ef"):
        conversation.answer(line)
    first, second, third = (ids for ids, _ in Recorded.runs)
    assert first == [BOS, *b"ab"] and third == [BOS, *b"ef"]
    assert second[:3] == first and second[-2:] == list(b"cd") and second.count(BOS) == 1


def test_ids_without_text_do_not_end_a_text(writer: Writer) -> None:
    """The model's vocabulary is larger than the tokenizer's; only ids with a text are sampled."""
    found = writer.write(writer.encode("ab"), GenerationConfig(max_new_tokens=30, seed=0), lambda _: None)
    assert isinstance(found.text, str) and found.reason in ("length", "token")
    assert max(found.ids) < 256
