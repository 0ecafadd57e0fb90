"""Records as questions to a model: the ids before the answer, the answer, its candidates and its stop tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modular_gpt.data.records.encode import ANSWER, Encoded, RecordEncoder
from modular_gpt.data.records.record import Record
from modular_gpt.data.templates import Stops

MAX_LABELS = 100  # candidates for a label; with more labels there are none


@dataclass(frozen=True)
class Candidate:
    """A possible answer; ids: of the answer and its end."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Question:
    """A record as a question.

    before: ids before the answer, at least one; answer: ids of the answer and its end
    candidates: choices, or all labels in the records; () in other formats
    stops: tokens and texts that end a generated answer
    """

    record: Record
    before: list[int]
    answer: list[int]
    candidates: tuple[Candidate, ...]
    stops: Stops

    @property
    def asks(self) -> bool:
        """Whether the record has an answer apart from a prompt, which a whole text has not."""
        return self.record.format != "text"


def ask(encoder: RecordEncoder, records: Sequence[Record]) -> list[Question]:
    """The questions of records, in their order.

    Raises:
        BadRecord: the tokenizer does not know a character, or the template cannot render the turns.
    """
    labels = sorted({record.label for record in records if record.label is not None})
    texts = [_candidates(record, labels if len(labels) <= MAX_LABELS else []) for record in records]
    pairs = zip(records, texts, strict=True)
    variants = [_with_answer(record, text) for record, candidates in pairs for text in candidates]
    encoded, of_candidates = encoder.encode(records), encoder.encode(variants)
    questions = []
    for record, whole, candidates in zip(records, encoded, texts, strict=True):
        before, answer = _split_answer(whole)
        options = tuple(Candidate(text, _split_answer(next(of_candidates))[1]) for text in candidates)
        questions.append(Question(record, before, answer, options, encoder.stops(record)))
    return questions


def _candidates(record: Record, labels: Iterable[str]) -> Sequence[str]:
    return record.choices or (list(labels) if record.label is not None else ())


def _with_answer(record: Record, text: str) -> Record:
    return replace(record, answer=text, label=None if record.label is None else text)


def _split_answer(encoded: Encoded) -> tuple[list[int], list[int]]:
    """The ids before the last answer, and those of the answer with its end."""
    others = np.flatnonzero(encoded.roles != ANSWER)
    start = max(1, int(others[-1]) + 1 if len(others) else 0)  # without a prompt, the first token is the prompt
    ids: list[int] = encoded.ids.tolist()
    return ids[:start], ids[start:]
