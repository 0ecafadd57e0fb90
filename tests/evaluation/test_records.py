"""Evaluation of records: likelihoods equal a naive full pass, answers equal those of one prompt at a time."""

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.core.errors import DataError
from modular_gpt.data import build_tokenizer
from modular_gpt.data.records import Record, Turn
from modular_gpt.data.records.encode import RecordEncoder, RecordText
from modular_gpt.data.records.questions import MAX_LABELS, Question, ask
from modular_gpt.evaluation.metrics import METRICS, exact_match, score_answer, score_answers
from modular_gpt.evaluation.records import RecordOptions, evaluate_records

CONTEXT = 48
RECORDS = [
    Record("completion", "a:1", "world", "hello "),
    Record("completion", "a:2", "no prompt"),
    Record("choices", "a:3", "green", "grass is", choices=("red", "green", "blue or something longer")),
    Record("label", "a:4", "good", "I like it", label="good"),
    Record("label", "a:5", "bad", "never again, whatever they say", label="bad"),
    Record("text", "a:6", "a whole text"),
    Record("messages", "a:7", "Hi.", "Hey", (Turn("user", "Hey"), Turn("assistant", "Hi."))),
]


@pytest.fixture(scope="module")
def model() -> GPTModel:
    torch.manual_seed(3)
    return GPTModel(d_model=16, n_layers=2, n_heads=2, vocab_size=256, context_length=CONTEXT, init_std=0.5).eval()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return ask(RecordEncoder(RecordText(None, None), build_tokenizer("byte")), RECORDS)


def naive(model: GPTModel, before: list[int], answer: list[int]) -> float:
    """Log-probability of an answer by one pass over one row, summed token by token."""
    ids = [*before, *answer][-(CONTEXT + 1) :]
    with torch.no_grad():
        scores = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    first = len(ids) - len(answer)
    return sum(scores[place - 1, ids[place]].item() for place in range(first, len(ids)))


def text_of(ids: list[int]) -> str:
    return bytes(ids).decode()


def test_questions_have_the_text_of_training(questions: list[Question]) -> None:
    first, empty, choice, good, _, whole, chat = questions
    assert (text_of(first.before), text_of(first.answer)) == ("hello ", "world\n\n")
    assert (text_of(empty.before), text_of(empty.answer)) == ("n", "o prompt\n\n")
    assert [(c.text, text_of(c.ids)) for c in choice.candidates] == [(t, f"{t}\n\n") for t in RECORDS[2].choices]
    assert text_of(choice.before) == "grass is\n" and text_of(choice.answer) == "green\n\n"
    assert [c.text for c in good.candidates] == ["bad", "good"]
    assert not whole.asks and whole.candidates == () and first.stops.texts == ["\n\n"]
    assert text_of(chat.answer).strip() == "Hi." and text_of(chat.before).count("Hey") == 1


def test_too_many_labels_are_not_candidates() -> None:
    records = [Record("label", "a", str(n), "text", label=str(n)) for n in range(MAX_LABELS + 1)]
    asked = ask(RecordEncoder(RecordText(None, None), build_tokenizer("byte")), records)
    assert {question.candidates for question in asked} == {()}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_likelihoods_equal_those_of_a_naive_full_pass(
    batch_size: int, model: GPTModel, questions: list[Question]
) -> None:
    found = evaluate_records(model, build_tokenizer("byte"), questions, RecordOptions(batch_size, 0))
    expected = [naive(model, question.before, question.answer) for question in questions]
    assert [p.scores["logprob"] for p in found.predictions] == pytest.approx(expected, rel=1e-4)
    tokens = sum(len(question.answer) for question in questions)
    assert found.metrics["answer_tokens"] == tokens
    assert found.metrics["loss"] == pytest.approx(-sum(expected) / tokens, rel=1e-4)
    hits, by_length = [], []
    for question, prediction in zip(questions, found.predictions, strict=True):
        values = {c.text: naive(model, question.before, c.ids) for c in question.candidates}
        means = {c.text: naive(model, question.before, c.ids) / len(c.ids) for c in question.candidates}
        if values:
            assert prediction.chosen == max(values, key=lambda text: values[text])
            hits.append(prediction.chosen == question.record.answer)
            by_length.append(max(means, key=lambda text: means[text]) == question.record.answer)
    assert len(hits) == 3
    assert found.metrics["accuracy"] == pytest.approx(sum(hits) / 3)
    assert found.metrics["accuracy_normalized"] == pytest.approx(sum(by_length) / 3)


def test_likelihoods_with_and_without_length_normalisation(model: GPTModel) -> None:
    """With a uniform model the shortest candidate wins; normalised by length all candidates tie."""
    even = GPTModel(d_model=16, n_layers=1, n_heads=2, vocab_size=256, context_length=CONTEXT)
    torch.nn.init.zeros_(even.embedding.weight)
    record = Record("choices", "a", "long one", "q", choices=("long one", "b"))
    asked = ask(RecordEncoder(RecordText(None, None), build_tokenizer("byte")), [record])
    found = evaluate_records(even, build_tokenizer("byte"), asked, RecordOptions(max_new_tokens=0))
    assert (found.metrics["accuracy"], found.metrics["accuracy_normalized"]) == (0.0, 1.0)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_answers_equal_those_of_one_prompt_at_a_time(
    batch_size: int, model: GPTModel, questions: list[Question]
) -> None:
    found = evaluate_records(model, build_tokenizer("byte"), questions, RecordOptions(batch_size, 12))
    for question, prediction in zip(questions, found.predictions, strict=True):
        if not question.asks:
            assert prediction.generated is None
            continue
        prompt = torch.tensor([question.before])
        new = model.generate(prompt, 12, greedy=True, overflow="window")[0, len(question.before) :]
        text = bytes(new.tolist()).decode(errors="replace")
        for stop in question.stops.texts:
            text = text.partition(stop)[0]
        assert prediction.generated == text
        assert prediction.scores["exact_match"] == float(text.strip() == question.record.answer)


def test_long_answers_are_skipped_and_long_prompts_truncated(model: GPTModel) -> None:
    records = [Record("completion", "a:1", "x" * CONTEXT, "q"), Record("completion", "a:2", "short", "p" * 500)]
    asked = ask(RecordEncoder(RecordText(None, None), build_tokenizer("byte")), records)
    found = evaluate_records(model, build_tokenizer("byte"), asked, RecordOptions(max_new_tokens=4))
    assert (found.metrics["records"], found.metrics["too_long"]) == (1, 1)
    expected = naive(model, asked[1].before, asked[1].answer)
    assert found.predictions[0].scores["logprob"] == pytest.approx(expected, rel=1e-4)
    long = "all 1 answers are longer than the context of 48 tokens"
    for questions, reason in ((asked[:1], long), ([], "there are none")):
        with pytest.raises(DataError) as caught:
            evaluate_records(model, build_tokenizer("byte"), questions)
        assert str(caught.value).startswith(f"there is no record to evaluate ({reason})")


PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("a b c d", "a b c d"),
    ("guten Morgen", "good morning"),
    ("x", ""),
]


def test_exact_match_ignores_surrounding_white_space() -> None:
    assert [exact_match(a, b) for a, b in (("a", " a\n"), ("a b", "a  b"), ("a", "A"))] == [1.0, 0.0, 0.0]
    assert score_answers(["a", "b", "c"], ["a", "x", "c"])["exact_match"] == pytest.approx(2 / 3)


def test_rouge_is_the_longest_common_subsequence_of_words() -> None:
    """Compared with the definition."""
    pytest.importorskip("rouge_score", reason="needs the extra metrics")

    def lcs(one: list[str], other: list[str]) -> int:
        if not one or not other:
            return 0
        if one[-1] == other[-1]:
            return lcs(one[:-1], other[:-1]) + 1
        return max(lcs(one[:-1], other), lcs(one, other[:-1]))

    scores = []
    for expected, generated in PAIRS:
        common = lcs(expected.lower().split(), generated.lower().split())
        scores.append(2 * common / (len(expected.split()) + len(generated.split())))
        assert score_answer(expected, generated)["rouge_l"] == pytest.approx(scores[-1])
    assert score_answers(*map(list, zip(*PAIRS, strict=True)))["rouge_l"] == pytest.approx(sum(scores) / len(scores))


def test_chrf_and_bleu_equal_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra metrics")
    expected, generated = map(list, zip(*PAIRS, strict=True))
    found = score_answers(expected, generated)
    assert found["chrf"] == pytest.approx(sacrebleu.metrics.CHRF().corpus_score(generated, [expected]).score)
    assert found["bleu"] == pytest.approx(sacrebleu.metrics.BLEU().corpus_score(generated, [expected]).score)
    one = score_answer(*PAIRS[0])
    assert one["chrf"] == pytest.approx(sacrebleu.metrics.CHRF().sentence_score(PAIRS[0][1], [PAIRS[0][0]]).score)


def test_metrics_without_their_package_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert set(score_answers(["a"], ["a"])) == set(score_answer("a", "a")) == {"exact_match"}
    assert [name for name, metric in METRICS.items() if not metric.is_installed] == ["rouge_l", "chrf", "bleu"]
