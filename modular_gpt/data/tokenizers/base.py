"""The interface of a tokenizer: text to ids and back, and a definition that is saved as plain JSON."""

import hashlib
import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from torch import Tensor

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.json_files import MAX_BYTES, parse_json, read_regular
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.progress import progress_line
from modular_gpt.core.registry import Component, ComponentConfig, entries
from modular_gpt.core.validation import shown
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.templates import ChatTemplate, Message, SpecialTexts, definition_of, template_of
from modular_gpt.data.templates import encode as encode_conversation
from modular_gpt.data.tokenizers.streaming import StreamDecoder, TextStream

FILE = "tokenizer.json"
TOKENIZER_FORMAT = 1
END_OF_TEXT = "<|endoftext|>"
MAX_VOCAB_SIZE = 2**24  # of a vocabulary to learn

Ids = np.ndarray  # one-dimensional, of any integer type


class Tokenizer(Component, ABC, slot="tokenizer"):
    """Text to ids and back.

    name: registered name of the class
    learns: whether ``build`` takes its vocabulary from a corpus
    vocab_size: ids run from 0 to vocab_size - 1
    eos_id: the id between documents, or None
    bos_id: the id at the beginning of a pretrained model's texts, or None; ``prompt_ids`` adds it, ``encode`` never
    template: the chat template that the model was trained with, or None
    """

    name: ClassVar[str] = ""
    learns: ClassVar[bool] = False
    vocab_size: int
    eos_id: int | None = None
    bos_id: int | None = None
    template: ChatTemplate | None = None
    _end_ids: tuple[int, ...] = ()  # further ids that end a text

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        cls.name = name
        super().__init_subclass__(name=name, **kwargs)

    @classmethod
    @abstractmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        """A new tokenizer from settings; classes with ``learns`` take their vocabulary from ``corpus``."""

    @classmethod
    @abstractmethod
    def from_definition(cls, definition: PlainDict) -> Self:
        """The tokenizer that ``definition()`` describes; needs no network and no other file."""

    @abstractmethod
    def definition(self) -> PlainDict:
        """Everything that ``encode`` and ``decode`` depend on, as plain JSON values."""

    @abstractmethod
    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text; special tokens spelled in it are encoded as ordinary text."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of ids that all have one."""

    def _gaps(self) -> Iterable[int]:
        """The ids below ``vocab_size`` without text."""
        return ()

    @cached_property
    def _gap_set(self) -> frozenset[int]:
        return frozenset(self._gaps())

    def has_text(self, id: int) -> bool:
        """Whether an id is in the vocabulary and has a token."""
        return 0 <= id < self.vocab_size and id not in self._gap_set

    def unused_ids(self, vocab_size: int) -> list[int]:
        """The ids of a model's vocabulary for which this tokenizer has no text, in ascending order.

        A model may have more ids than its tokenizer (padded embeddings), and some vocabularies have gaps.
        Generation excludes these ids.

        vocab_size: number of ids of the model
        """
        gaps = sorted(id for id in self._gap_set if id < vocab_size)
        return [*gaps, *range(self.vocab_size, vocab_size)]

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of the special tokens by their text, which ``encode`` recognises only with ``special=True``."""
        return {}

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text.

        special: encode special tokens that are spelled in the text as such, instead of as text

        Raises:
            DataError: the text has a character that the tokenizer does not know, or that UTF-8 cannot hold.
        """
        if not isinstance(text, str):
            hint = "; encode_many takes several" if isinstance(text, (list, tuple)) else ""
            raise DataError(f"encode takes one text, got {shown(text)}{hint}")
        if special and self.special_tokens:
            return self._encode_special(text)
        out: list[int] = self.encode_many([text])[0].tolist()
        return out

    def _encode_special(self, text: str) -> list[int]:
        """The ids of a text with special tokens; each stretch of text between two of them is encoded separately."""
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        stretches = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids: list[int] = []
        for index, stretch in enumerate(stretches):
            ids += [self.special_tokens[stretch]] if index % 2 else self.encode_stretch(stretch, first=index == 0)
        return ids

    def encode_stretch(self, text: str, first: bool) -> list[int]:
        """The ids of a stretch of a longer text, between two special tokens.

        first: whether the text begins with this stretch; some tokenizers add a space there
        """
        return self.encode(text) if text else []

    @property
    def eos_ids(self) -> list[int]:
        """All ids that end a text: ``eos_id``, then the others that a pretrained model's files name."""
        return [*([] if self.eos_id is None else [self.eos_id]), *self._end_ids]

    def with_bos(self, ids: Sequence[int]) -> list[int]:
        """The ids of a whole text as a pretrained model expects them: ``bos_id``, if there is one, and ``ids``."""
        return [*([] if self.bos_id is None else [self.bos_id]), *ids]

    def prompt_ids(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text for a model to continue: ``bos_id``, if there is one, and those of the text.

        An empty text becomes ``bos_id``, or else ``eos_id``.

        special: encode special tokens that are spelled in the text as such; a leading ``bos_id`` is not repeated

        Raises:
            DataError: a character is not in the vocabulary.
            ConfigError: the text is empty, and the tokenizer has neither ``bos_id`` nor ``eos_id``.
        """
        ids = self.encode(text, special)
        if not ids or ids[0] != self.bos_id:
            ids = self.with_bos(ids)
        if not ids and self.eos_id is None:
            raise ConfigError(
                f"the prompt is empty, and a {self.name} tokenizer has no token to begin with: give some text"
            )
        return ids or [cast(int, self.eos_id)]

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        """The ids of a conversation that ``template`` renders; the method of this name in transformers.

        messages: mappings with a ``role`` (system, user or assistant) and a ``content``
        add_generation_prompt: end with the beginning of an answer, for a model to continue

        Raises:
            ConfigError: the tokenizer has no template.
            DataError: the template cannot render the conversation.
        """
        if self.template is None:
            raise ConfigError(
                "this tokenizer has no chat template: give it one by"
                " tokenizer.with_template(build_template('chatml', tokenizer))"
            )
        return encode_conversation(self.template, self, messages, add_generation_prompt)

    def with_template(self, template: ChatTemplate | None) -> Self:
        """The same tokenizer with this chat template, which is saved with it; None: with none."""
        new = copy(self)
        new.template = template
        return new

    def for_new_model(self) -> "Tokenizer":
        """The tokenizer for a model trained from scratch: without ``bos_id``, further end ids and template.

        The training text has no such tokens, so they must not be in the prompts of that model.
        """
        return self.with_template(None)

    def decode(self, ids: Iterable[int] | Tensor | np.ndarray, errors: str = "strict") -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        errors: handling of ids without text: ``strict`` raises an error; ``ignore`` leaves them out, for ids that a
            model generated, whose vocabulary may be larger than the tokenizer's

        Raises:
            DataError: an id has no text, and ``errors`` is ``strict``; or the ids are not one row of whole numbers.
        """
        assert errors in ("strict", "ignore"), errors
        numbers = _whole_numbers(ids)
        known = [number for number in numbers if self.has_text(number)]
        if errors == "strict" and len(known) < len(numbers):
            raise self._without_text(next(number for number in numbers if not self.has_text(number)))
        return self._decode(known)

    def decode_stream(self) -> StreamDecoder:
        """A streaming decoder, which returns whole characters only and leaves out ids without text."""
        return TextStream(self._decode, self.has_text)

    def _without_text(self, number: int) -> DataError:
        where = "is a gap" if 0 <= number < self.vocab_size else "is not"
        return DataError(
            f"id {number} {where} in the vocabulary of this {self.name} tokenizer, which ends at"
            f" {self.vocab_size - 1}: use the tokenizer that the model was trained with"
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the name and the definition: tokenizers with equal fingerprints encode equally."""
        content = json.dumps([self.name, self.definition()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _template_fingerprint(self, definition: object) -> str:
        """SHA-256 of the definition of a chat template together with that of the tokenizer."""
        return hashlib.sha256(json.dumps([self.fingerprint, definition], sort_keys=True).encode()).hexdigest()

    def describe(self) -> PlainDict:
        """Properties of the tokenizer that a run records."""
        return {"name": self.name, "vocab_size": self.vocab_size, "fingerprint": self.fingerprint}

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.json`` into a directory that exists."""
        content = {
            "modular_gpt_tokenizer": TOKENIZER_FORMAT,
            "kind": self.name,
            "fingerprint": self.fingerprint,
            "definition": self.definition(),
        }
        if self.template is not None:
            template = definition_of(self.template)
            content |= {"template": template, "template_fingerprint": self._template_fingerprint(template)}
        (Path(directory) / FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")

    @staticmethod
    def is_saved_in(directory: Path) -> bool:
        """Whether a directory has a tokenizer file of this package, intact or damaged."""
        try:
            return b'"modular_gpt_tokenizer"' in read_regular(directory / FILE, MAX_BYTES)[:1000]
        except (OSError, ValueError):
            return False

    @staticmethod
    def load(directory: str | Path) -> "Tokenizer":
        """The tokenizer that ``save`` wrote into a directory.

        Raises:
            DataError: the file is missing, damaged or of another program; the message has its path.
        """
        path = Path(directory) / FILE
        try:
            content = parse_json(read_regular(path, MAX_BYTES))
        except FileNotFoundError as error:
            raise DataError(f"there is no tokenizer file '{path}': name the directory of a checkpoint") from error
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if not isinstance(content, dict) or content.get("modular_gpt_tokenizer") != TOKENIZER_FORMAT:
            raise DataError(
                f"'{path}' is not a tokenizer file of this version: if it comes from Hugging Face,"
                " use tokenizer=hf tokenizer.path=<that file>"
            )
        return _from_content(content, path)


def _from_content(content: PlainDict, path: Path) -> Tokenizer:
    """The tokenizer of a file's content. Raises a DataError if that is damaged."""
    try:
        component = cast(type[Tokenizer], entries("tokenizer")[content["kind"]].component)
        tokenizer = component.from_definition(content["definition"])
        if tokenizer.fingerprint != content["fingerprint"]:
            raise ValueError("its content does not match its fingerprint")
        if (template := content.get("template")) is not None:
            if tokenizer._template_fingerprint(template) != content["template_fingerprint"]:
                raise ValueError("its chat template does not match its fingerprint")
            tokenizer = tokenizer.with_template(template_of(template, SpecialTexts.of(tokenizer)))
    except ConfigError:
        raise  # a package is missing
    except Exception as error:  # any error that a library raises for a damaged definition
        raise _damaged(path, error) from error
    return tokenizer


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"the tokenizer file '{path}' is damaged ({reason}): restore it from a copy")


def _whole_numbers(ids: object) -> list[int]:
    """Token ids as Python numbers. Raises a DataError for anything but one row of whole numbers."""
    row = ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else ids
    try:
        return [operator.index(number) for number in cast(Iterable[Any], row)]
    except TypeError:
        hint = "; decode each row by itself" if getattr(ids, "ndim", 1) > 1 else ""
        raise DataError(f"decode takes token ids, one list of whole numbers, got {shown(row)}{hint}") from None


def check_text(texts: Iterable[str]) -> None:
    """Raise a DataError for a value that is no text, or a text with half a surrogate pair, which UTF-8 cannot hold."""
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"a tokenizer encodes texts, got {shown(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the text is not valid Unicode (U+{ord(text[error.start]):04X} at position {error.start}"
                " is half a surrogate pair): replace that character"
            ) from error


def check_size(name: str, vocab_size: int, minimum: int) -> None:
    """Raise a ConfigError unless a vocabulary to learn has from ``minimum`` to ``MAX_VOCAB_SIZE`` ids."""
    if vocab_size < minimum:
        raise ConfigError(f"tokenizer.vocab_size of {name} must be at least {minimum}, got {vocab_size}")
    if vocab_size > MAX_VOCAB_SIZE:
        raise ConfigError(f"tokenizer.vocab_size of {name} must be at most {MAX_VOCAB_SIZE:,}, got {vocab_size!s:.20}")


def require_corpus(corpus: Corpus | None, name: str) -> Corpus:
    """Return the corpus from which a tokenizer learns; raise a ConfigError if there is none."""
    if corpus is None:
        raise ConfigError(f"tokenizer={name} learns from a corpus: give one, or use tokenizer=byte")
    return corpus


@contextmanager
def training_texts(corpus: Corpus | None, name: str, limit: int | None = None) -> Iterator[Iterator[str]]:
    """Context manager: the training text from which a tokenizer learns, in chunks, with a progress line.

    limit: number of characters to yield, from chunks spread evenly over a longer text, or from its beginning if its
        length is not known before reading; None: all

    Raises:
        ConfigError: there is no corpus.
    """
    source = require_corpus(corpus, name)
    total = source.characters("train")

    def texts() -> Iterator[str]:
        done = taken = 0
        for chunk in source.documents("train"):
            if limit is None or (taken < limit if total is None else taken * total <= done * limit):
                yield chunk.text
                taken += len(chunk.text)
            elif total is None:
                return
            done += len(chunk.text)
            update(done)

    with progress_line(f"Training the {name} tokenizer", total, unit="characters") as update:
        yield texts()
