"""The special tokens of a published tokenizer that begin and end a text.

They are spread over four files of a model's folder: the post-processor in tokenizer.json, tokenizer_config.json,
generation_config.json and config.json. The rules are those of the transformers library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modular_gpt.core.errors import DataError
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict, PlainMapping

TOKENIZER_CONFIG = "tokenizer_config.json"
MODEL_CONFIGS = ("generation_config.json", "config.json")  # both may name end tokens
MAX_BYTES = 64 * 2**20  # of such a file; chat templates and lists of added tokens are long


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens at the beginning and the end of a text, from the files beside a tokenizer.

    bos: token that begins a text, None where a text begins with none; eos: token that ends a text
    end_ids: ids that end a text for the model, ``eos`` not included
    """

    bos: str | None = None
    eos: str | None = None
    end_ids: tuple[int, ...] = field(default=())


def read_special_tokens(path: Path, post_processor: object) -> SpecialTokens:
    """The special tokens of a tokenizer file, from it and from the files beside it.

    path: of the tokenizer file; post_processor: of its JSON, or None

    Raises:
        DataError: a file beside it cannot be read, or names a token or an id by a value of the wrong type.
    """
    beside = path.with_name(TOKENIZER_CONFIG)
    settings = _optional(beside)
    named = _token(settings, "bos_token", beside)
    # As in transformers, the flag adds a token that the post-processor lacks (DeepSeek's does) and removes none.
    bos = first_token(post_processor, path) or (named if settings.get("add_bos_token") is True else None)
    ends = [id for name in MODEL_CONFIGS for id in _end_ids(path.with_name(name))]
    return SpecialTokens(bos, _token(settings, "eos_token", beside), tuple(dict.fromkeys(ends)))


def first_token(post_processor: object, path: Path) -> str | None:
    """The token that a post-processor (JSON of the ``tokenizers`` library) puts before a text; None for none.

    Raises:
        DataError: the post-processor puts several there.
    """
    tokens = _leading(post_processor)
    if len(tokens) > 1:
        raise DataError(
            f"'{path}' begins a text with {len(tokens)} tokens ({', '.join(map(str, tokens))}), and one is supported:"
            " leave one of them in its post_processor"
        )
    return tokens[0] if tokens else None


def _leading(processor: object) -> list[str]:
    """The tokens that a post-processor puts before a text, in their order."""
    if not isinstance(processor, Mapping):
        return []
    steps = processor.get("processors")
    if isinstance(steps, list):  # a sequence: a later step puts its tokens before those of an earlier one
        return [token for step in reversed(steps) for token in _leading(step)]
    if isinstance(first := processor.get("cls"), list) and first:  # BertProcessing and RobertaProcessing
        return [str(first[0])]
    tokens = []
    for item in processor.get("single") or []:
        special = item.get("SpecialToken") if isinstance(item, Mapping) else None
        if not isinstance(special, Mapping):
            break
        tokens.append(str(special.get("id")))
    return tokens


def _optional(path: Path) -> PlainDict:
    if not path.is_file():
        return {}
    return load_json_object(path, MAX_BYTES, remedy="correct or remove it")


def _token(settings: PlainMapping, name: str, path: Path) -> str | None:
    """A token's text, given directly or in a mapping with a ``content``; an empty one counts as none."""
    value = settings.get(name)
    token = value.get("content") if isinstance(value, Mapping) else value
    if (token is not None and not isinstance(token, str)) or (isinstance(value, Mapping) and token is None):
        raise DataError(f"'{path}': {name} must be a text, or a mapping with its content, got {value!r:.80}")
    return token or None


def _end_ids(path: Path) -> list[int]:
    value = _optional(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise DataError(f"'{path}': eos_token_id must be a whole number or a list of these, got {value!r:.80}")
    return ids
