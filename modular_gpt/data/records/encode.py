"""Records to token ids, and which of them are prompt and which are answer."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from modular_gpt.core.errors import DataError
from modular_gpt.data.records.record import BadRecord, Record
from modular_gpt.data.templates import ChatTemplate, Stops, build_template, definition_of, encode_with_answers, stops_of
from modular_gpt.data.tokenizers.base import Tokenizer

PROMPT, EARLIER, ANSWER = 0, 1, 2  # a token of the prompt, of an earlier answer of the assistant, of the last answer
TRAIN_ON = {"all": PROMPT, "assistant": EARLIER, "completion": ANSWER}  # the lowest role that counts in the loss
END = "\n\n"  # ends an answer where the tokenizer has no token that ends a text
SEPARATORS = {"label": "\n", "choices": "\n"}  # between prompt and answer, by format; nothing in the other formats
PLAIN = "plain"
RECORDS = 512  # encoded at a time, so that libraries can use several threads


class Encoded(NamedTuple):
    """A record as tokens.

    ids: (n,) of the prompt as generation reads it, of the answer, and of its end
    roles: (n,) uint8, ``PROMPT``, ``EARLIER`` or ``ANSWER``
    """

    ids: np.ndarray
    roles: np.ndarray


class RecordText:
    """The text of records: prompt and answer joined as they are, or the turns of a conversation by a template."""

    def __init__(self, template: str | None, separator: str | None) -> None:
        """template: ``data.template``; separator: ``data.separator``"""
        self.template, self.separator = template, separator

    def turns(self, record: Record) -> list[Mapping[str, str]]:
        """The messages that a template renders; none where prompt and answer are joined as they are."""
        turns = record.turns
        if not turns and self.template is not None and record.format != "text":
            turns = record.as_turns()
        return [turn._asdict() for turn in turns]

    def template_for(self, tokenizer: Tokenizer | None) -> ChatTemplate:
        """The template that renders turns: by default the tokenizer's, or else ``plain``."""
        own = None if tokenizer is None else tokenizer.template
        if self.template is None and own is not None:
            return own
        return build_template(PLAIN if self.template is None else self.template, tokenizer)

    def prompt(self, record: Record) -> str:
        """The text before the answer of a record without turns, the separator included."""
        if record.format == "text":
            return ""
        separator = SEPARATORS.get(record.format, "") if self.separator is None else self.separator
        return record.prompt + separator

    def plain(self, record: Record) -> str:
        """The whole text of a record, from which a tokenizer can learn."""
        turns = self.turns(record)
        whole = self.template_for(None).render(turns) if turns else self.prompt(record) + record.answer
        return whole + END


class RecordEncoder:
    """Encodes records with one tokenizer.

    The prompt is encoded as generation reads it: behind the token that begins a text, where there is one; an empty one
    is that token, or else the one that ends a text. The answer is encoded on its own and ends with the token that ends
    a text, or where there is none, with an empty line (``END``). In conversations the template writes these ends.
    """

    def __init__(self, text: RecordText, tokenizer: Tokenizer) -> None:
        self.text, self.tokenizer = text, tokenizer
        self.template = text.template_for(tokenizer)
        self.end = tokenizer.encode(END) if tokenizer.eos_id is None else [tokenizer.eos_id]

    @property
    def fingerprint(self) -> str:
        """All that the tokens depend on besides the records and the tokenizer, as one text."""
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
        rest = iter(records)
        while batch := list(islice(rest, RECORDS)):
            joined = [record for record in batch if not self.text.turns(record)]
            answers = iter(self._joined(joined))
            for record in batch:
                turns = self.text.turns(record)
                yield self._conversation(record, turns) if turns else next(answers)

    def _joined(self, records: Sequence[Record]) -> list[Encoded]:
        """The tokens of records whose prompt and answer are joined as they are."""
        try:
            prompts = self.tokenizer.encode_many([self.text.prompt(record) for record in records])
            answers = self.tokenizer.encode_many([record.answer for record in records])
        except DataError as error:
            if len(records) == 1:
                raise BadRecord(f"{records[0].where}: {error}") from error
            return [encoded for record in records for encoded in self._joined([record])]  # which one it is
        return [self._behind(prompt.tolist(), answer.tolist()) for prompt, answer in zip(prompts, answers, strict=True)]

    def _behind(self, prompt: list[int], answer: list[int]) -> Encoded:
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
