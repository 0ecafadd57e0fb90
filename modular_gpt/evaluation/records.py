"""Records answered by a model: loss on the answers, accuracy by likelihood, and metrics of generated answers."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data.records.questions import Question
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.answers import generate_answers, greedy_config
from modular_gpt.evaluation.likelihood import Continued, by_length, likelihoods
from modular_gpt.evaluation.metrics import score_answer, score_answers
from modular_gpt.model import GPTModel

Progress = Callable[[int, int], object]  # called with the numbers of answers so far and in all


@dataclass(frozen=True)
class RecordOptions:
    """How records are evaluated.

    batch_size: answers computed at once
    max_new_tokens: limit of a generated answer; None: the longest one that is expected; 0: none is generated
    """

    batch_size: int = 8
    max_new_tokens: int | None = None


@dataclass
class Prediction:
    """What a model makes of a record.

    generated: its greedy answer; chosen: the most likely candidate; None where there is none
    scores: by name; ``logprob`` is that of the expected answer, in nats
    """

    where: str
    prompt: str
    expected: str
    generated: str | None = None
    chosen: str | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> str:
        """One line of a file of predictions."""
        content: PlainDict = {"prompt": self.prompt, "expected": self.expected, "generated": self.generated}
        return json.dumps({**content, "chosen": self.chosen, "scores": self.scores}, ensure_ascii=False)


@dataclass(frozen=True)
class RecordEvaluation:
    """How well a model answers records.

    metrics: by name, over all records that were evaluated; predictions: of these, in their order
    """

    metrics: dict[str, float]
    predictions: list[Prediction]


def evaluate_records(
    model: GPTModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    options: RecordOptions | None = None,
    progress: Progress | None = None,
) -> RecordEvaluation:
    """Measure how well a model answers questions; those whose answer is longer than the context are left out.

    Raises:
        DataError: no question is left.
        NonFiniteError: the model's logits are not finite.
    """
    options, limit = options or RecordOptions(), model.config.context_length
    fitting = [question for question in questions if _longest(question) <= limit]
    if not fitting:
        long = f"all {len(questions)} answers are longer than the context of {limit} tokens"
        reason = long if questions else "there are none at all"
        raise DataError(f"there is no record to evaluate ({reason}): give records with shorter answers")
    model.eval()
    predictions = [Prediction(q.record.where, q.record.prompt, q.record.answer) for q in fitting]
    metrics: dict[str, float] = {"records": len(fitting), "too_long": len(questions) - len(fitting)}
    metrics |= _score_likelihood(model, fitting, predictions, options.batch_size, progress)
    if options.max_new_tokens != 0:
        metrics |= _score_generated(model, tokenizer, fitting, predictions, options)
    return RecordEvaluation(metrics, predictions)


def _longest(question: Question) -> int:
    return max(len(ids) for ids in (question.answer, *(candidate.ids for candidate in question.candidates)))


def _score_likelihood(
    model: GPTModel,
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    size: int,
    progress: Progress | None,
) -> dict[str, float]:
    """The loss on the expected answers, and how often they are the most likely candidate, also per token."""
    texts = [Continued(q.before, ids, q.record.where) for q in questions for ids in _answers(q)]
    logprobs, done = [0.0] * len(texts), 0
    for batch in by_length([len(text.before) + len(text.ids) for text in texts], size):
        for number, likelihood in zip(batch, likelihoods(model, [texts[n] for n in batch]), strict=True):
            logprobs[number] = likelihood.logprob
        done += len(batch)
        if progress is not None:
            progress(done, len(texts))
    tokens, total, hits, hits_by_length, start = 0, 0.0, [], [], 0
    for question, prediction in zip(questions, predictions, strict=True):
        answers = _answers(question)
        found = logprobs[start : (start := start + len(answers))]
        prediction.scores["logprob"] = found[0]
        tokens, total = tokens + len(answers[0]), total + found[0]
        if question.candidates:
            means = [value / len(ids) for value, ids in zip(found, answers, strict=True)]
            listed = [candidate.text for candidate in question.candidates]
            raw, normalized = (listed[max(range(len(listed)), key=values[1:].__getitem__)] for values in (found, means))
            prediction.chosen = raw
            hits.append(float(raw == question.record.answer))
            hits_by_length.append(float(normalized == question.record.answer))
            prediction.scores |= {"correct": hits[-1], "correct_normalized": hits_by_length[-1]}
    loss = -total / tokens
    metrics = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "answer_tokens": tokens}
    if hits:
        metrics |= {"accuracy": sum(hits) / len(hits), "accuracy_normalized": sum(hits_by_length) / len(hits)}
    return metrics


def _answers(question: Question) -> list[list[int]]:
    """The ids of the expected answer, then of each candidate."""
    return [question.answer, *(candidate.ids for candidate in question.candidates)]


def _score_generated(
    model: GPTModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    options: RecordOptions,
) -> dict[str, float]:
    """Metrics of the greedy answers to those records that ask something."""
    asked = [(q, prediction) for q, prediction in zip(questions, predictions, strict=True) if q.asks]
    if not asked:
        return {}
    answers = answer_questions(model, tokenizer, [question for question, _ in asked], options)
    for (_, prediction), answer in zip(asked, answers, strict=True):
        prediction.generated = answer
        prediction.scores |= score_answer(prediction.expected, answer)
    return score_answers([prediction.expected for _, prediction in asked], answers)


def answer_questions(
    model: GPTModel, tokenizer: Tokenizer, questions: Sequence[Question], options: RecordOptions
) -> list[str]:
    """The greedy answer of a model to each question.

    Raises:
        NonFiniteError: the model's logits are not finite.
    """
    longest = max((len(question.answer) for question in questions), default=0)
    limit = longest if options.max_new_tokens is None else options.max_new_tokens
    found = [""] * len(questions)
    numbered = sorted(range(len(questions)), key=lambda number: str(questions[number].stops))
    for _, group in groupby(numbered, key=lambda number: str(questions[number].stops)):
        numbers = list(group)
        stops = questions[numbers[0]].stops
        tokens = list(dict.fromkeys([*tokenizer.eos_ids, *stops.tokens]))
        settings = greedy_config(model, tokenizer, limit, stop=stops.texts, stop_tokens=tokens)
        prompts = [questions[number].before for number in numbers]
        answers = generate_answers(model, tokenizer, prompts, settings, options.batch_size, tokenizer.bos_id)
        for number, answer in zip(numbers, answers, strict=True):
            found[number] = answer
    return found
