"""Checks of tokenizer definitions before a compiled library reads them, since some make it panic or abort."""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from modular_gpt.core.errors import DataError, first_line
from modular_gpt.core.plain_types import PlainMapping

MAX_ID = 2**24  # of a token
MAX_STEPS = 64  # of a normalizer, pre-tokenizer, post-processor or decoder
MAX_GROWTH = 64.0  # limit of the factor by which all replacements together lengthen a text
STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")  # keys of nested steps


@contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Context manager: raise a DataError for every failure of a tokenizer library inside, panics included.

    where: beginning of the message, such as the path of the file

    Raises:
        DataError: the library failed.
    """
    try:
        yield
    except (DataError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        reason = first_line(error)[:200]
        raise DataError(f"{where} ({reason})") from error


def check_library_json(content: object) -> None:
    """Check the JSON of the ``tokenizers`` library for values that make the library panic, abort or run for ever.

    Raises:
        ValueError: with the reason.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise ValueError("it has no model")
    _check_ids(content["model"].get("vocab"), content.get("added_tokens") or [])
    for stage in STAGES:
        steps = list(_steps(content.get(stage)))
        if len(steps) > MAX_STEPS:
            raise ValueError(f"its {stage} has {len(steps)} steps, more than {MAX_STEPS}")
        growth = 1.0
        for step in steps:
            if step.get("type") == "Precompiled":
                _check_precompiled(step.get("precompiled_charsmap"))
            growth *= _growth(step)
        if growth > MAX_GROWTH:
            raise ValueError(f"its {stage} may make a text {growth:,.0f} times longer")


def _check_ids(vocab: object, added: object) -> None:
    """Raise a ValueError unless there are tokens, and the id of each is from 0 to ``MAX_ID - 1``."""
    if isinstance(vocab, list):  # Unigram: pairs of a token and its score, whose place is the id
        ids = list(range(len(vocab)))
    elif isinstance(vocab, Mapping):
        ids = list(vocab.values())
    else:
        raise ValueError("its model has no vocabulary")
    if not isinstance(added, list) or not all(isinstance(token, Mapping) for token in added):
        raise ValueError("its added_tokens are no list of mappings")
    ids += [token.get("id") for token in added]
    if not ids:
        raise ValueError("its vocabulary is empty")
    wrong = [id for id in ids if not isinstance(id, int) or not 0 <= id < MAX_ID]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no id of a token")


def _steps(stage: object) -> Iterator[PlainMapping]:
    """The steps of a stage in order; nested sequences are flattened."""
    if not isinstance(stage, Mapping):
        return
    nested = next((stage[name] for name in SEQUENCES if isinstance(stage.get(name), list)), None)
    if nested is None:
        yield stage
        return
    for step in nested:
        yield from _steps(step)


def _growth(step: PlainMapping) -> float:
    """The factor by which a step that replaces text may lengthen it, at least 1."""
    if step.get("type") != "Replace":
        return 1.0
    pattern, content = step.get("pattern"), step.get("content")
    literal = pattern.get("String") if isinstance(pattern, Mapping) else None
    if literal == "" or (isinstance(pattern, Mapping) and pattern.get("Regex") == ""):
        raise ValueError("it replaces the empty text")
    length = len(literal) if isinstance(literal, str) else 1
    return max(1.0, len(content) / length) if isinstance(content, str) else 1.0


def _check_precompiled(charsmap: object) -> None:
    """Raise a ValueError unless a normalisation table of SentencePiece has the size of its trie, the trie and texts."""
    if not isinstance(charsmap, str):
        raise ValueError("its precompiled_charsmap is no text")
    try:
        data = base64.b64decode(charsmap, validate=True)
        size = int.from_bytes(data[:4], "little")
        if len(data) < 8 or size % 4 or not 4 <= size <= len(data) - 4:
            raise ValueError(f"of {len(data)} bytes its trie claims {size}")
        data[4 + size :].decode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"its precompiled_charsmap is damaged: {error}") from error


def check_ranks(ranks: Mapping[bytes, object], special: PlainMapping) -> None:
    """Check the tables of a byte-pair encoding by rank (tiktoken).

    Raises:
        ValueError: an id is no whole number, two tokens have the same id, or a single byte has none.
    """
    ids = [*ranks.values(), *special.values()]
    if not all(isinstance(id, int) and not isinstance(id, bool) and 0 <= id < MAX_ID for id in ids):
        raise ValueError("its ranks are no ids")
    if len(set(ids)) < len(ids):
        raise ValueError("two of its tokens have the same id")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("it has no token for some bytes")
