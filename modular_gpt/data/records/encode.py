"""Encoding of records: token ids, and the role of each token (prompt or answer)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from modular_gpt.core.errors import DataError
from modular_gpt.data.records.record import BadRecord, Record
from modular_gpt.data.templates import ChatTemplate, Stops, build_template, definition_of, encode_with_answers, stops_of
from modular_gpt.data.tokenizers.base import Tokenizer

PROMPT, EARLIER, ANSWER = 0, 1, 2  # roles: the prompt, an earlier answer of the assistant, the last answer
TRAIN_ON = {"all": PROMPT, "assistant": EARLIER, "completion": ANSWER}  # the lowest role that counts in the loss
END = "\n\n"  # ends an answer if the tokenizer has no end-of-text token
SEPARATORS = {"label": "\n", "choices": "\n"}  # between prompt and answer, by format; nothing in the other formats
PLAIN = "plain"
RECORDS = 512  # encoded at a time, so that libraries can use several threads


class Encoded(NamedTuple):
    """A record as tokens.

    ids: (n,) int64, of the prompt, the answer and the end of the answer
    roles: (n,) uint8, ``PROMPT``, ``EARLIER`` or ``ANSWER``
    """

    ids: np.ndarray
    roles: np.ndarray


class RecordText:
    """The text of records: the prompt and the answer in sequence, or the turns of a conversation by a template."""

    def __init__(self, template: str | None, separator: str | None) -> None:
        """template: ``data.template``; separator: ``data.separator``"""
        self.template, self.separator = template, separator

    def turns(self, record: Record) -> list[Mapping[str, str]]:
        """The messages that a template renders; [] for a record whose text is the prompt and the answer in sequence."""
        turns = record.turns
        if not turns and self.template is not None and record.format != "text":
            turns = record.as_turns()
        return [turn._asdict() for turn in turns]

    def template_for(self, tokenizer: Tokenizer | None) -> ChatTemplate:
        """The template that renders turns: by default the tokenizer's, or else ``plain``."""
        if self.template is None and tokenizer is not None and tokenizer.template is not None:
            return tokenizer.template
        return build_template(PLAIN if self.template is None else self.template, tokenizer)

    def prompt(self, record: Record) -> str:
        """The text before the answer of a record without turns, the separator included."""
        if record.format == "text":
            return ""
        separator = SEPARATORS.get(record.format, "") if self.separator is None else self.separator
        return record.prompt + separator

    def plain(self, record: Record) -> str:
        """The whole text of a record, for tokenizers that learn from text."""
        turns = self.turns(record)
        text = self.template_for(None).render(turns) if turns else self.prompt(record) + record.answer
        return text + END


class RecordEncoder:
    """Encodes records with one tokenizer.

    The prompt is encoded as generation reads it: it begins with the BOS token, if the tokenizer has one, and an empty
    prompt is the BOS or else the EOS token. The answer is encoded separately and ends with the EOS token, or with an
    empty line (``END``) if there is none. Conversations have the ends that their template writes.
    """

    def __init__(self, text: RecordText, tokenizer: Tokenizer) -> None:
        self.text, self.tokenizer = text, tokenizer
        self.template = text.template_for(tokenizer)
        self.end = tokenizer.encode(END) if tokenizer.eos_id is None else [tokenizer.eos_id]

    @property
    def fingerprint(self) -> str:
        """A text that changes with everything that the tokens depend on besides the records and the tokenizer."""
        return json.dumps([END, SEPARATORS, self.text.separator, self.text.template, definition_of(self.template)])

    def stops(self, record: Record) -> Stops:
        """The tokens and texts that end a generated answer to a record."""
        if self.text.turns(record):
            return stops_of(self.template, self.tokenizer)
        eos_id = self.tokenizer.eos_id
        return Stops([], [END]) if eos_id is None else Stops([eos_id], [])

    def encode(self, records: Iterable[Record]) -> Iterator[Encoded]:
        """The tokens of records, in their order.

        Raises:
            BadRecord: the tokenizer does not know a character, or the template cannot render the turns.
        """
        remaining = iter(records)
        while batch := list(islice(remaining, RECORDS)):
            without_turns = iter(self._without_turns([record for record in batch if not self.text.turns(record)]))
            for record in batch:
                turns = self.text.turns(record)
                yield self._conversation(record, turns) if turns else next(without_turns)

    def _without_turns(self, records: Sequence[Record]) -> list[Encoded]:
        """The tokens of records whose text is the prompt and the answer in sequence."""
        try:
            prompts = self.tokenizer.encode_many([self.text.prompt(record) for record in records])
            answers = self.tokenizer.encode_many([record.answer for record in records])
        except DataError as error:
            if len(records) == 1:
                raise BadRecord(f"{records[0].where}: {error}") from error
            # Encoded one by one, the error names the record.
            return [encoded for record in records for encoded in self._without_turns([record])]
        pairs = zip(prompts, answers, strict=True)
        return [self._concatenated(prompt.tolist(), answer.tolist()) for prompt, answer in pairs]

    def _concatenated(self, prompt: list[int], answer: list[int]) -> Encoded:
        """The tokens of a record: the ids of its prompt, of its answer, and of its end."""
        begin = self.tokenizer.with_bos(prompt)
        if not begin and self.tokenizer.eos_id is not None:
            begin = [self.tokenizer.eos_id]
        ids = [*begin, *answer, *self.end]
        return _encoded(ids, np.where(np.arange(len(ids)) < len(begin), PROMPT, ANSWER))

    def _conversation(self, record: Record, turns: Sequence[Mapping[str, str]]) -> Encoded:
        try:
            ids, is_answer = encode_with_answers(self.template, self.tokenizer, turns)
        except DataError as error:
            raise BadRecord(f"{record.where}: {error}") from error
        answers = np.array(is_answer)
        outside = np.flatnonzero(~answers[: np.flatnonzero(answers)[-1]])
        last = 0 if not len(outside) else int(outside[-1]) + 1  # where the last answer begins
        return _encoded(ids, np.where(answers, np.where(np.arange(len(ids)) < last, EARLIER, ANSWER), PROMPT))


def _encoded(ids: list[int], roles: np.ndarray) -> Encoded:
    return Encoded(np.asarray(ids, dtype=np.int64), roles.astype(np.uint8))
