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
# regular expressions that split a text into words -> the name of the same splitting in llama.cpp
SPLITS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt-2",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s": "llama-bpe",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}
NO_MERGE = "\u2581 \u2581"  # llama.cpp wants one merge; these letters stand for no byte
REMEDY = "GGUF has byte-level BPE (byte, bpe, gpt2 and other tiktoken encodings) and the BPE of SentencePiece"


@dataclass(frozen=True)
class GGUFVocabulary:
    """Tokens and how a text becomes them.

    model: tokenizer.ggml.model: gpt2 (byte-level BPE) or llama (the BPE of SentencePiece)
    split: tokenizer.ggml.pre, for BPE
    bos_id, eos_id: ids that begin and end a text, None where there is none
    chat_template: in Jinja, None where there is none; eot_id: the id that ends an answer by it
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
        """Add the vocabulary; the rows that a model has beyond it become unused tokens."""
        beyond = range(len(self.tokens), size)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list([*self.tokens, *(f"[PAD{id}]".encode() for id in beyond)])
        writer.add_token_types([*self.types, *(UNUSED for _ in beyond)])
        if self.scores:
            writer.add_token_scores([*self.scores, *(-1e4 for _ in beyond)])
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
    """Byte-level BPE from the JSON of the ``tokenizers`` library.

    Raises:
        CheckpointError: it is another tokenizer, or splits texts in a way that llama.cpp does not know.
    """
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or _bytes_stage(content) is None:
        raise CheckpointError(f"this tokenizer has no counterpart in GGUF: {REMEDY}; write to=hf instead")
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
        split=_split(content, bool(merges)),
        bos_id=bos_id,
        eos_id=eos_id,
    )


def _stages(content: PlainMapping) -> list[PlainMapping]:
    stage = content.get("pre_tokenizer") or {}
    stages: list[PlainMapping] = stage["pretokenizers"] if stage.get("type") == "Sequence" else [stage]
    return stages


def _bytes_stage(content: PlainMapping) -> PlainMapping | None:
    return next((stage for stage in _stages(content) if stage.get("type") == "ByteLevel"), None)


def _split(content: PlainMapping, merges: bool) -> str:
    """The name in llama.cpp of the way in which a text is split into words."""
    normalizer, stages, letters = content.get("normalizer"), _stages(content), _bytes_stage(content)
    regexes = [(stage.get("pattern") or {}).get("Regex") for stage in stages if stage.get("type") == "Split"]
    if letters is not None and letters.get("use_regex", True):
        regexes.append(next(iter(SPLITS)))
    if not merges and not regexes:
        return "gpt-2"  # bytes by themselves, however they are split
    name = SPLITS.get(str(regexes[0])) if len(regexes) == 1 else None
    normalized = normalizer is not None and not (name == "qwen2" and normalizer.get("type") == "NFC")
    if name is None or normalized or (letters or {}).get("add_prefix_space"):
        raise CheckpointError(
            "this tokenizer changes a text or splits it into words in a way that llama.cpp does not know:"
            " write to=hf instead"
        )
    return name


def from_sentencepiece(processor: "SentencePieceProcessor", symbols: Sequence[str]) -> GGUFVocabulary:
    """The vocabulary of a ``SentencePieceProcessor`` that changes no text; symbols: user-defined ones.

    Raises:
        CheckpointError: it is a unigram model, for which llama.cpp does not use the tokens of single bytes.
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
    if any(score != round(score) for score in scores):  # BPE's are minus a rank
        raise CheckpointError(f"{REMEDY}, not a unigram model (tokenizer.algorithm=unigram); write to=hf instead")
    return GGUFVocabulary(
        model="llama",
        tokens=[processor.id_to_piece(id).encode() for id in ids],
        types=types,
        scores=scores,
        eos_id=processor.eos_id(),
        unknown_id=processor.unk_id(),
        flags={"add_space_prefix": False, "remove_extra_whitespaces": False},
    )
