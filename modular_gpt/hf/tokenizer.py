"""Conversion of the tokenizers of this package to the transformers library."""

import base64
import json
from itertools import pairwise
from typing import TYPE_CHECKING

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data.tokenizers import BYTE_LETTERS, Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast


def to_transformers(tokenizer: Tokenizer, context_length: int | None = None) -> "PreTrainedTokenizerFast":
    """Convert a tokenizer to a ``PreTrainedTokenizerFast`` that returns the same ids as ``prompt_ids``.

    Names of special tokens within a text are encoded as text, as by ``Tokenizer.encode``, unless the tokenizer has a
    chat template, since transformers encodes rendered conversations like any text. Padding is on the left, as
    ``generate`` requires.

    context_length: model_max_length of the result, above which transformers warns; None: no limit

    Raises:
        ConfigError: transformers has no counterpart of this tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    inner = _to_library(tokenizer)
    bos, eos = (None if id is None else inner.id_to_token(id) for id in (tokenizer.bos_id, tokenizer.eos_id))
    inner.post_processor = _bos_processor(bos, tokenizer.bos_id)
    roles = {"eos_token": eos, "bos_token": bos or eos, "pad_token": eos}
    special = {name: token for name, token in roles.items() if token is not None}
    limit = {} if context_length is None else {"model_max_length": context_length}
    template = tokenizer.template
    converted = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=template is None,
        **(special if template is None else {**special, **template.tokens}),
        **limit,
    )
    if template is not None:
        converted.chat_template = template.jinja()
    return converted


def _to_library(tokenizer: Tokenizer) -> "LibraryTokenizer":
    """Convert a tokenizer to the ``tokenizers`` library. Raises a ConfigError if that has no counterpart."""
    import tokenizers

    definition = tokenizer.definition()
    convert = {"byte": _convert_bytes, "char": _convert_characters, "tiktoken": _convert_ranks}.get(tokenizer.name)
    if convert is not None:
        return convert(definition)
    if "tokenizer" not in definition:  # the definition by the library, which other tokenizers store
        raise ConfigError(
            f"tokenizer={tokenizer.name} cannot be written for transformers, which has no counterpart: use another"
            " tokenizer"
        )
    return tokenizers.Tokenizer.from_str(json.dumps(definition["tokenizer"]))


def _bos_processor(bos: str | None, bos_id: int | None) -> "processors.PostProcessor":
    """The post-processor that adds ``bos`` before a text, and no other token."""
    from tokenizers import processors

    begin = "" if bos is None else f"{bos}:0 "
    special = [] if bos is None else [(bos, bos_id)]
    return processors.TemplateProcessing(single=f"{begin}$A:0", pair=f"{begin}$A:0 $B:1", special_tokens=special)


def _convert_bytes(definition: PlainDict) -> "LibraryTokenizer":
    """Convert ``tokenizer=byte``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in BYTE_LETTERS.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _convert_characters(definition: PlainDict) -> "LibraryTokenizer":
    """Convert ``tokenizer=char``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    from modular_gpt.data.tokenizers.char import UNKNOWN

    tokens = [*definition["characters"], *([UNKNOWN] if definition["unknown"] == "unk" else [])]
    unknown = {"unk_token": UNKNOWN} if definition["unknown"] == "unk" else {}
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, **unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _convert_ranks(definition: PlainDict) -> "LibraryTokenizer":
    """Convert a BPE of tiktoken, which is defined by the rank of each token instead of by merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ranks = {base64.b64decode(token): rank for token, rank in definition["ranks"].items()}
    letters = {token: "".join(BYTE_LETTERS[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            subtokens = _merged_pair(token, ranks)
            if len(subtokens) == 2:
                merges.append((letters[subtokens[0]], letters[subtokens[1]]))
    vocab = {**{letters[token]: rank for token, rank in ranks.items()}, **definition["special"]}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(definition["pattern"]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(definition["special"]))
    return tokenizer


def _merged_pair(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two subtokens whose merge is ``token``, found by applying all merges of lower rank to its bytes.

    More than two subtokens remain if no merge gives the token.
    """
    subtokens = [bytes([byte]) for byte in token]
    while len(subtokens) > 2:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(subtokens)) if a + b in ranks]
        rank, i = min(pairs, default=(None, 0))
        if rank is None or rank >= ranks[token]:
            break
        subtokens[i : i + 2] = [subtokens[i] + subtokens[i + 1]]
    return subtokens
