"""Our tokenizers as tokenizers of the transformers library, for the folders that it loads."""

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
    """A ``PreTrainedTokenizerFast`` that gives the ids of ``prompt_ids``: ``bos_id``, where there is one, and the text.

    Special tokens that are spelled out in a text are text, as in our ``encode``, unless the tokenizer has a chat
    template: transformers encodes conversations as it encodes any text. It pads on the left, as ``generate`` needs.

    context_length: becomes its model_max_length, past which it warns

    Raises:
        ConfigError: transformers has no counterpart of this tokenizer.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    made = {"byte": _bytes, "char": _characters, "tiktoken": _ranks}.get(tokenizer.name)
    definition = tokenizer.definition()
    if made is not None:
        inner = made(definition)
    elif "tokenizer" in definition:  # it is one of that library already
        inner = tokenizers.Tokenizer.from_str(json.dumps(definition["tokenizer"]))
    else:
        raise ConfigError(f"tokenizer={tokenizer.name} cannot be written for transformers, which has no such kind")
    bos, end = (None if id is None else inner.id_to_token(id) for id in (tokenizer.bos_id, tokenizer.eos_id))
    inner.post_processor = _template(bos, tokenizer.bos_id)
    named = {"eos_token": end, "bos_token": bos or end, "pad_token": end}
    known = {name: token for name, token in named.items() if token is not None}
    limit = {} if context_length is None else {"model_max_length": context_length}
    template = tokenizer.template
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=template is None,
        **(known if template is None else {**known, **template.tokens}),
        **limit,
    )
    if template is not None:
        found.chat_template = template.jinja()
    return found


def _template(bos: str | None, bos_id: int | None) -> "processors.PostProcessor":
    """The post-processor that puts ``bos`` before a text, and nothing else anywhere."""
    from tokenizers import processors

    begin = "" if bos is None else f"{bos}:0 "
    special = [] if bos is None else [(bos, bos_id)]
    return processors.TemplateProcessing(single=f"{begin}$A:0", pair=f"{begin}$A:0 $B:1", special_tokens=special)


def _bytes(definition: PlainDict) -> "LibraryTokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in BYTE_LETTERS.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _characters(definition: PlainDict) -> "LibraryTokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    from modular_gpt.data.tokenizers.char import UNKNOWN

    tokens = [*definition["characters"], *([UNKNOWN] if definition["unknown"] == "unk" else [])]
    unknown = {"unk_token": UNKNOWN} if definition["unknown"] == "unk" else {}
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, **unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _ranks(definition: PlainDict) -> "LibraryTokenizer":
    """A byte-pair encoding that is given by the rank of each token instead of by its merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ranks = {base64.b64decode(token): rank for token, rank in definition["ranks"].items()}
    spelled = {token: "".join(BYTE_LETTERS[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            subtokens = _last_two(token, ranks)
            if len(subtokens) == 2:
                merges.append((spelled[subtokens[0]], spelled[subtokens[1]]))
    vocab = {**{spelled[token]: rank for token, rank in ranks.items()}, **definition["special"]}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(definition["pattern"]), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(definition["special"]))
    return tokenizer


def _last_two(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that the merge of a token joins, by applying all merges of lower rank."""
    subtokens = [bytes([byte]) for byte in token]
    while len(subtokens) > 2:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(subtokens)) if a + b in ranks]
        rank, i = min(pairs, default=(None, 0))
        if rank is None or rank >= ranks[token]:
            break
        subtokens[i : i + 2] = [subtokens[i] + subtokens[i + 1]]
    return subtokens
