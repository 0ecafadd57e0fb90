"""Evaluation on records: loss of the expected answers, accuracy by likelihood, and metrics of generated answers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data.records.questions import Question
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.answers import generate_answers, greedy_config
from modular_gpt.evaluation.likelihood import LikelihoodRequest, by_length, likelihoods
from modular_gpt.evaluation.metrics import score_answer, score_answers
from modular_gpt.model import GPTModel
from modular_gpt.model.loss import perplexity

Progress = Callable[[int, int], object]  # called with the number of scored answers and their total number


@dataclass(frozen=True)
class RecordOptions:
    """Settings of an evaluation on records.

    batch_size: number of answers in a forward pass
    max_new_tokens: limit of a generated answer in tokens; None: the length of the longest expected answer; 0: generate
        no answers
    """

    batch_size: int = 8
    max_new_tokens: int | None = None


@dataclass
class Prediction:
    """The result of one record.

    where: file and line of the record
    generated: answer of greedy decoding, or None; chosen: the most likely candidate, None if there are no candidates
    scores: metrics by name; ``logprob`` is the log-probability of the expected answer in nats
    """

    where: str
    prompt: str
    expected: str
    generated: str | None = None
    chosen: str | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> str:
        """Format the prediction as a JSON object in one line."""
        content: PlainDict = {"prompt": self.prompt, "expected": self.expected, "generated": self.generated}
        return json.dumps({**content, "chosen": self.chosen, "scores": self.scores}, ensure_ascii=False)


@dataclass(frozen=True)
class RecordEvaluation:
    """The result of an evaluation on records.

    metrics: metrics over all evaluated records, by name
    predictions: results of the evaluated records, in their order
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
    """Evaluate a model, which is set to evaluation mode, on questions.

    Questions with an answer or a candidate that is longer than the model's context are left out; the metric
    ``too_long`` is their number.

    progress: called after each batch of the likelihoods

    Raises:
        DataError: no question is left.
        NonFiniteError: the model's logits are not finite.
    """
    options, context = options or RecordOptions(), model.config.context_length
    fitting = [question for question in questions if _longest(question) <= context]
    if not fitting:
        too_long = f"all {len(questions)} answers are longer than the context of {context} tokens"
        reason, remedy = (too_long, "with shorter answers") if questions else ("there are none", "with answers")
        raise DataError(f"there is no record to evaluate ({reason}): give records {remedy}")
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
    """The loss of the expected answers and, for questions with candidates, the accuracy of the most likely candidate.

    The normalised accuracy compares candidates by their log-probability per token.
    """
    logprobs = _log_probabilities(model, questions, size, progress)
    tokens, total, correct, correct_normalized = 0, 0.0, [], []
    for question, prediction, scores in zip(questions, predictions, logprobs, strict=True):
        answers = _answers(question)
        prediction.scores["logprob"] = scores[0]
        tokens, total = tokens + len(answers[0]), total + scores[0]
        if question.candidates:
            means = [score / len(ids) for score, ids in zip(scores, answers, strict=True)]
            texts = [candidate.text for candidate in question.candidates]
            raw, normalized = (texts[max(range(len(texts)), key=row[1:].__getitem__)] for row in (scores, means))
            prediction.chosen = raw
            correct.append(float(raw == question.record.answer))
            correct_normalized.append(float(normalized == question.record.answer))
            prediction.scores |= {"correct": correct[-1], "correct_normalized": correct_normalized[-1]}
    loss = -total / tokens
    metrics = {"loss": loss, "perplexity": perplexity(loss), "answer_tokens": tokens}
    if correct:
        count = len(correct)
        metrics |= {"accuracy": sum(correct) / count, "accuracy_normalized": sum(correct_normalized) / count}
    return metrics


def _log_probabilities(
    model: GPTModel, questions: Sequence[Question], size: int, progress: Progress | None
) -> list[list[float]]:
    """For each question, the log-probabilities of its ``_answers``; size: number of answers in a batch."""
    requests = [LikelihoodRequest(q.before, ids, q.record.where) for q in questions for ids in _answers(q)]
    logprobs, done = [0.0] * len(requests), 0
    for batch in by_length([len(request.context) + len(request.ids) for request in requests], size):
        for index, likelihood in zip(batch, likelihoods(model, [requests[i] for i in batch]), strict=True):
            logprobs[index] = likelihood.logprob
        done += len(batch)
        if progress is not None:
            progress(done, len(requests))
    remaining = iter(logprobs)
    return [[next(remaining) for _ in _answers(question)] for question in questions]


def _answers(question: Question) -> list[list[int]]:
    """The ids of the expected answer, followed by those of each candidate."""
    return [question.answer, *(candidate.ids for candidate in question.candidates)]


def _score_generated(
    model: GPTModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    options: RecordOptions,
) -> dict[str, float]:
    """Metrics of the greedy answers to the questions; records of whole texts have no question."""
    pairs = [(q, prediction) for q, prediction in zip(questions, predictions, strict=True) if q.asks]
    if not pairs:
        return {}
    answers = answer_questions(model, tokenizer, [question for question, _ in pairs], options)
    for (_, prediction), answer in zip(pairs, answers, strict=True):
        prediction.generated = answer
        prediction.scores |= score_answer(prediction.expected, answer)
    return score_answers([prediction.expected for _, prediction in pairs], answers)


def answer_questions(
    model: GPTModel, tokenizer: Tokenizer, questions: Sequence[Question], options: RecordOptions
) -> list[str]:
    """Answer each question by greedy decoding.

    Raises:
        NonFiniteError: the model's logits are not finite.
    """
    longest = max((len(question.answer) for question in questions), default=0)
    limit = longest if options.max_new_tokens is None else options.max_new_tokens
    answers = [""] * len(questions)
    by_stops = sorted(range(len(questions)), key=lambda index: str(questions[index].stops))
    for _, group in groupby(by_stops, key=lambda index: str(questions[index].stops)):
        indices = list(group)
        stops = questions[indices[0]].stops
        tokens = list(dict.fromkeys([*tokenizer.eos_ids, *stops.tokens]))
        settings = greedy_config(model, tokenizer, limit, stop=stops.texts, stop_tokens=tokens)
        prompts = [questions[index].before for index in indices]
        texts = generate_answers(model, tokenizer, prompts, settings, options.batch_size, tokenizer.bos_id)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
    return answers
