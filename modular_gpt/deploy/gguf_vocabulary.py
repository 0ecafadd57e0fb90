"""The vocabulary of a GGUF file, from byte-level BPE of the ``tokenizers`` library or a SentencePiece model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modular_gpt.core.errors import CheckpointError
from modular_gpt.core.plain_types import PlainMapping

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from sentencepiece import SentencePieceProcessor

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of GGUF
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# regular expression of a pre-tokenizer -> name of the equivalent pre-tokenizer in llama.cpp
SPLITS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt-2",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s": "llama-bpe",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}
NO_MERGE = "\u2581 \u2581"  # llama.cpp requires at least one merge; these characters represent no byte
REMEDY = "GGUF supports byte-level BPE (byte, bpe, gpt2 and other tiktoken encodings) and SentencePiece BPE"


@dataclass(frozen=True)
class GGUFVocabulary:
    """A tokenizer as GGUF stores it.

    model: tokenizer.ggml.model: gpt2 (byte-level BPE) or llama (SentencePiece BPE)
    types: token type of each token
    merges: of byte-level BPE; scores: of SentencePiece BPE
    split: tokenizer.ggml.pre, the name of the pre-tokenizer
    bos_id, eos_id, unknown_id: ids of these special tokens; None: there is no such token
    chat_template: template in Jinja, or None; eot_id: id that ends an answer by the template, or None
    flags: further keys below tokenizer.ggml
    """

    model: str
    tokens: Sequence[bytes]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    split: str = "default"
    bos_id: int | None = None
    eos_id: int | None = None
    unknown_id: int | None = None
    chat_template: str | None = None
    eot_id: int | None = None
    flags: dict[str, bool] = field(default_factory=dict)

    def add_to(self, writer: "GGUFWriter", size: int) -> None:
        """Add the vocabulary to a file, filled up with unused tokens to ``size``, the number of embeddings."""
        unused = range(len(self.tokens), size)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list([*self.tokens, *(f"[PAD{id}]".encode() for id in unused)])
        writer.add_token_types([*self.types, *(UNUSED for _ in unused)])
        if self.scores:
            writer.add_token_scores([*self.scores, *(-1e4 for _ in unused)])
        if self.model == "gpt2":
            writer.add_token_merges(list(self.merges))
        for add, id in (
            (writer.add_bos_token_id, self.bos_id),
            (writer.add_eos_token_id, self.eos_id),
            (writer.add_unk_token_id, self.unknown_id),
            (writer.add_eot_token_id, self.eot_id),
        ):
            if id is not None:
                add(id)
        writer.add_add_bos_token(self.bos_id is not None)
        writer.add_add_eos_token(False)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)
        for name, value in self.flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)


def from_library(content: PlainMapping, bos_id: int | None, eos_id: int | None) -> GGUFVocabulary:
    """Convert a byte-level BPE tokenizer from the JSON of the ``tokenizers`` library.

    Raises:
        CheckpointError: it is no byte-level BPE, or llama.cpp lacks its normalizer or pre-tokenizer.
    """
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or _byte_level(content) is None:
        raise CheckpointError(f"this tokenizer has no counterpart in GGUF: {REMEDY}; use to=hf instead")
    added = {token["id"]: token for token in content.get("added_tokens") or ()}
    ids = {id: token for token, id in model["vocab"].items()} | {id: token["content"] for id, token in added.items()}
    count = max(ids) + 1
    types = [NORMAL if id in ids else UNUSED for id in range(count)]
    for id, token in added.items():
        types[id] = CONTROL if token.get("special") else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GGUFVocabulary(
        model="gpt2",
        tokens=[ids.get(id, f"[PAD{id}]").encode() for id in range(count)],
        types=types,
        merges=merges or [NO_MERGE],
        split=_split_name(content, bool(merges)),
        bos_id=bos_id,
        eos_id=eos_id,
    )


def _pre_tokenizers(content: PlainMapping) -> list[PlainMapping]:
    outer = content.get("pre_tokenizer") or {}
    stages: list[PlainMapping] = outer["pretokenizers"] if outer.get("type") == "Sequence" else [outer]
    return stages


def _byte_level(content: PlainMapping) -> PlainMapping | None:
    """The pre-tokenizer that maps bytes to characters; None if there is none."""
    return next((stage for stage in _pre_tokenizers(content) if stage.get("type") == "ByteLevel"), None)


def _split_name(content: PlainMapping, merges: bool) -> str:
    """The name of the pre-tokenizer in llama.cpp; merges: whether the BPE has merges.

    Raises:
        CheckpointError: llama.cpp has no equivalent.
    """
    normalizer, stages, byte_level = content.get("normalizer"), _pre_tokenizers(content), _byte_level(content)
    regexes = [(stage.get("pattern") or {}).get("Regex") for stage in stages if stage.get("type") == "Split"]
    if byte_level is not None and byte_level.get("use_regex", True):
        regexes.append(next(iter(SPLITS)))
    if not merges and not regexes:
        return "gpt-2"  # every byte is a token, so any split gives the same tokens
    name = SPLITS.get(str(regexes[0])) if len(regexes) == 1 else None
    normalized = normalizer is not None and not (name == "qwen2" and normalizer.get("type") == "NFC")
    if name is None or normalized or (byte_level or {}).get("add_prefix_space"):
        raise CheckpointError(
            "llama.cpp lacks the normalizer or the pre-tokenizer of this tokenizer: use to=hf instead"
        )
    return name


def from_sentencepiece(processor: "SentencePieceProcessor", symbols: Sequence[str]) -> GGUFVocabulary:
    """Convert a ``SentencePieceProcessor`` without normalisation; symbols: its user-defined symbols.

    Raises:
        CheckpointError: it is a unigram model, for which llama.cpp has no byte fallback.
    """
    ids, types = range(processor.get_piece_size()), []
    for id in ids:
        flags = {
            UNKNOWN: processor.is_unknown(id),
            CONTROL: processor.is_control(id),
            BYTE: processor.is_byte(id),
            UNUSED: processor.is_unused(id),
            USER_DEFINED: processor.id_to_piece(id) in symbols,
        }
        types.append(next((type for type, holds in flags.items() if holds), NORMAL))
    scores = [processor.get_score(id) for id in ids]
    if any(score != round(score) for score in scores):  # scores of BPE are negative ranks
        raise CheckpointError(f"{REMEDY}, not a unigram model (tokenizer.algorithm=unigram); use to=hf instead")
    return GGUFVocabulary(
        model="llama",
        tokens=[processor.id_to_piece(id).encode() for id in ids],
        types=types,
        scores=scores,
        eos_id=processor.eos_id(),
        unknown_id=processor.unk_id(),
        flags={"add_space_prefix": False, "remove_extra_whitespaces": False},
    )
