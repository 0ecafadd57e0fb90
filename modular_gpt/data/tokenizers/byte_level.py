"""Byte-level BPE with tiktoken: the ids of the tokenizers library, several times as fast."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modular_gpt.core.plain_types import PlainMapping

if TYPE_CHECKING:
    import tiktoken

_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that vocabularies write as themselves
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
# The character that stands for each byte in byte-level vocabularies, as in GPT-2's vocab.json.
BYTE_LETTERS = {**{b: chr(b) for b in _PRINTED}, **{b: chr(256 + i) for i, b in enumerate(_OTHERS)}}
# The pattern by which GPT-2, and the library's ByteLevel step, split a text before merging.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The settings besides the vocabulary that determine the ids, in the library's JSON.
_STAGES: PlainMapping = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
}
_MODEL: PlainMapping = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def trained_encoding(content: PlainMapping, special: str) -> "tiktoken.Encoding | None":
    """The tiktoken encoding that gives the same ids as a byte-level BPE trained by the tokenizers library.

    tiktoken merges the adjacent pair whose union has the lowest id, the library the pair that is first in its list of
    merges. Both are the same pair if ids ascend in the order of that list, as training assigns them: a pair whose union
    comes from another merge does not occur, since that merge was applied to the same characters before. Splitting and
    merging agree only for the settings that ``BPETokenizer`` trains with.

    content: the library's JSON; special: the only special token, with id 0

    Returns None for a tokenizer with other settings or other ids.
    """
    import tiktoken

    model, added = content["model"], content["added_tokens"]
    same = all(model.get(name) == value for name, value in _MODEL.items())
    same &= all(content.get(name) == value for name, value in _STAGES.items())
    if not same or [(token["content"], token["id"]) for token in added] != [(special, 0)]:
        return None
    vocab: PlainMapping = model["vocab"]
    letters = sorted(BYTE_LETTERS.values())
    unions = ["".join(merge) for merge in model["merges"]]
    if list(vocab) != sorted(vocab, key=vocab.__getitem__) or list(vocab) != [special, *letters, *unions]:
        return None
    byte_of = {letter: byte for byte, letter in BYTE_LETTERS.items()}
    ranks = {bytes(map(byte_of.__getitem__, token)): id for token, id in vocab.items() if token != special}
    return tiktoken.Encoding("trained", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={special: 0})


def encode_ordinary(encoding: "tiktoken.Encoding", texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, without special tokens, on all cores."""
    if len(texts) == 1:
        return [np.array(encoding.encode_ordinary(texts[0]), dtype=np.int64)]
    encoded = encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)
    return [np.array(ids, dtype=np.int64) for ids in encoded]
