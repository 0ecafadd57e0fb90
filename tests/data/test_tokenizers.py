"""Laws of every tokenizer, and properties of each kind."""

import argparse
import base64
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from modular_gpt.core.errors import ConfigError, DataError, UserError
from modular_gpt.core.registry import entries
from modular_gpt.data import CharTokenizer, Corpus, Tokenizer, build_corpus, build_tokenizer
from modular_gpt.data.tokenizers import open_tokenizer
from modular_gpt.data.tokenizers.base import END_OF_TEXT
from modular_gpt.data.tokenizers.huggingface import HuggingFaceTokenizer
from modular_gpt.data.tokenizers.library_checks import library_errors
from modular_gpt.data.tokenizers.tiktoken_encoding import TiktokenTokenizer
from tests.data.conftest import PLAY

LEARNED = ("bpe", "wordpiece", "sentencepiece")
KINDS = ("byte", "char", "gpt2", "hf", *LEARNED)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)  # any Unicode, no surrogates
LOSSLESS = TEXTS.map(lambda text: text.replace("\u2581", ""))  # sentencepiece's mark of the space


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    """Skip a kind whose package or files are not installed."""
    kind = getattr(request.node, "callspec", None) and request.node.callspec.params.get("kind")
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    if kind == "gpt2":
        request.getfixturevalue("tiktoken_cache")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """A tokenizer of each kind, trained once on the same short text."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "play.txt").write_text(PLAY, encoding="utf-8")
    corpus = build_corpus({"name": "text", "path": str(folder / "play.txt")})
    made: dict[str, Tokenizer] = {}

    def get(kind: str) -> Tokenizer:
        if kind not in made:
            settings: dict[str, object] = {"name": kind}
            if kind in LEARNED:
                settings["vocab_size"] = 600
            if kind == "hf":
                hugging_face_file(folder / "tokenizer.json")
                settings["path"] = str(folder)
            made[kind] = build_tokenizer(settings, corpus, folder / "cache")
        return made[kind]

    return get


def hugging_face_file(path: Path) -> None:
    """A typical tokenizer.json: byte-level BPE with a post-processor and an end of text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PLAY], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(max_length=8)
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    path.with_name("tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))


def known(kind: str, tokenizer: Tokenizer, text: str) -> str:
    """The characters of a text that a kind can encode; only char has a fixed alphabet."""
    return "".join(c for c in text if c in PLAY) if kind == "char" else text


def test_every_registered_kind_is_tested() -> None:
    registered = {entry.component.name for entry in entries("tokenizer").values()}
    assert registered - {"ids"} == {{"gpt2": "tiktoken"}.get(kind, kind) for kind in KINDS}  # see test_synthetic.py


@pytest.mark.parametrize("kind", KINDS)
@given(text=LOSSLESS)
def test_decoding_gives_back_the_text(kind: str, make: Callable[[str], Tokenizer], text: str) -> None:
    tokenizer = make(kind)
    text = known(kind, tokenizer, text)
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(torch.tensor(ids, dtype=torch.long)) == text
    assert tokenizer.decode(np.array(ids, dtype=np.int64)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=LOSSLESS)
def test_a_stream_yields_all_characters_whole(kind: str, make: Callable[[str], Tokenizer], text: str) -> None:
    tokenizer = make(kind)
    text = known(kind, tokenizer, text).replace("\ufffd", "")
    stream = tokenizer.decode_stream()
    shown = [stream.push(i) for i in tokenizer.encode(text)]
    assert stream.flush() == ""
    assert "".join(shown) == text
    assert not any("\ufffd" in chunk for chunk in shown)


@pytest.mark.parametrize("kind", ["byte", "gpt2", "bpe", "wordpiece", "hf", "sentencepiece"])
@given(data=st.data())
def test_a_stream_of_random_ids_equals_decode(kind: str, make: Callable[[str], Tokenizer], data: st.DataObject) -> None:
    """Ids as sampled from an untrained model: mostly invalid UTF-8."""
    tokenizer = make(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    stream = tokenizer.decode_stream()
    assert "".join([stream.push(i) for i in ids] + [stream.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_as_one_json_file(kind: str, make: Callable[[str], Tokenizer], tmp_path: Path) -> None:
    tokenizer = make(kind)
    tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    loaded = Tokenizer.load(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    assert loaded.encode(PLAY) == tokenizer.encode(PLAY)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_encoded_one_by_one(kind: str, make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make(kind)
    texts = ["First", "", "All:\n", PLAY]
    assert [ids.tolist() for ids in tokenizer.encode_many(texts)] == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "char"])
def test_special_tokens_in_a_text_are_text(kind: str, make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make(kind)
    for text in (END_OF_TEXT, "</s>", f"a {END_OF_TEXT} b"):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids and len(ids) > 1
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(("kind", "shown"), [("gpt2", END_OF_TEXT), ("bpe", END_OF_TEXT), ("hf", "</s>")])
def test_the_end_of_text_has_an_id(kind: str, shown: str, make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make(kind)
    assert tokenizer.eos_id is not None and tokenizer.decode([tokenizer.eos_id]) == shown


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_vocabulary_are_refused(kind: str, make: Callable[[str], Tokenizer]) -> None:
    tokenizer = make(kind)
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(DataError) as caught:
            tokenizer.decode([0, wrong])
        assert str(caught.value) == (
            f"id {wrong} is not in the vocabulary of this {tokenizer.name} tokenizer, which ends at"
            f" {tokenizer.vocab_size - 1}: use the tokenizer that the model was trained with"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_refused(kind: str, make: Callable[[str], Tokenizer]) -> None:
    with pytest.raises(DataError, match=r"U\+D83D at position 2 is half a surrogate pair"):
        make(kind).encode("ab\ud83d")


def test_bytes_are_utf8() -> None:
    assert build_tokenizer("byte").encode("é🙂") == list("é🙂".encode())


def test_gpt2_gives_the_published_ids(tiktoken_cache: Path) -> None:
    tokenizer = build_tokenizer("gpt2")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    assert tokenizer.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]


def test_a_tiktoken_checkpoint_needs_no_network(
    tiktoken_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tokenizer("gpt2").save(tmp_path)

    def no_network(*_: object) -> bytes:
        raise AssertionError("fetched")

    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    monkeypatch.setattr("tiktoken.get_encoding", no_network)
    assert Tokenizer.load(tmp_path).encode("Hello world") == [15496, 995]


def test_tiktoken_without_network_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(_: str) -> bytes:
        raise ConnectionError("no route to host")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", no_network)
    with pytest.raises(DataError) as caught:
        build_tokenizer("cl100k_base")
    assert str(caught.value) == (
        "cannot fetch tiktoken encoding 'cl100k_base' (ConnectionError): run once with network access,"
        " or set TIKTOKEN_CACHE_DIR to a directory that has its files"
    )


def test_every_tiktoken_preset_is_an_encoding() -> None:
    import tiktoken

    presets = [entry for entry in entries("tokenizer").values() if entry.component.name == "tiktoken"]
    assert {entry.default().encoding for entry in presets} <= set(tiktoken.list_encoding_names())  # type: ignore[attr-defined]


def test_char_has_the_characters_of_the_text(shakespeare_path: Path) -> None:
    text = shakespeare_path.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.build_vocab(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode("hii there") == [46, 47, 47, 1, 58, 46, 43, 56, 43]  # as in Karpathy's lecture


def test_char_has_the_alphabet_of_both_splits(text_corpus: Callable[..., Corpus]) -> None:
    tokenizer = build_tokenizer("char", text_corpus("a" * 95 + "z" * 5))
    assert isinstance(tokenizer, CharTokenizer) and tokenizer.characters == "az"


@pytest.mark.parametrize("character", ["é", "\x00", "🙂", "c"])
def test_char_names_an_unknown_character(character: str) -> None:
    tokenizer = CharTokenizer.build_vocab("abdz")
    with pytest.raises(DataError) as caught:
        tokenizer.encode(f"ab{character}")
    assert str(caught.value) == (
        f"character {character!r} (U+{ord(character):04X}) at position 2 is not among the 4 that this char"
        " tokenizer knows: leave it out, or train with tokenizer.unknown=unk"
    )


def test_char_can_have_an_unknown_token(play: Corpus, tmp_path: Path) -> None:
    tokenizer = build_tokenizer({"name": "char", "unknown": "unk"}, play)
    plain = build_tokenizer("char", play)
    assert tokenizer.vocab_size == plain.vocab_size + 1
    assert tokenizer.encode("All") == plain.encode("All")
    assert tokenizer.encode("Ω") == [plain.vocab_size]
    assert tokenizer.decode(tokenizer.encode("AΩl")) == "A<unk>l"
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("Ω") == [plain.vocab_size]


@pytest.mark.parametrize("kind", LEARNED)
def test_training_is_deterministic(kind: str, text_corpus: Callable[..., Corpus], tmp_path: Path) -> None:
    source = inspect.getsource(argparse)
    corpus, config = text_corpus(source), {"name": kind, "vocab_size": 800}
    first, second = (build_tokenizer(config, corpus, tmp_path / name) for name in ("one", "two"))
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 800
    assert len(first.encode(source)) < len(source) / 2  # the merges are used


def test_a_trained_tokenizer_is_cached(play: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_tokenizer("bpe", play)
    kept = list((cache / "tokenizers").iterdir())
    assert len(kept) == 1
    with monkeypatch.context() as patched:
        patched.setattr(type(first), "build", None)  # training again would fail
        assert build_tokenizer("bpe", play).fingerprint == first.fingerprint
    smaller = build_tokenizer({"name": "bpe", "vocab_size": 300}, play)
    assert smaller.vocab_size == 300 and len(list((cache / "tokenizers").iterdir())) == 2
    file = kept[0] / "tokenizer.json"
    file.write_text(file.read_text()[:-100])
    assert build_tokenizer("bpe", play).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("gtp2", "no tokenizer 'gtp2'; did you mean 'gpt2'?"),
        ({"name": "bpe", "vocab_sise": 300}, "tokenizer: no setting 'vocab_sise'; did you mean 'vocab_size'?"),
        ({"name": "bpe", "vocab_size": 200}, "tokenizer.vocab_size of bpe must be at least 257, got 200"),
        ({"name": "wordpiece", "vocab_size": 512}, "tokenizer.vocab_size of wordpiece must be at least 513, got 512"),
        ({"name": "bpe", "vocab_size": "many"}, "tokenizer.vocab_size must be a whole number, got 'many'"),
        ({"name": "char", "unknown": "skip"}, "tokenizer.unknown: no choice 'skip'; there are: error, unk"),
        ({"name": "tiktoken", "encoding": "gpt-2"}, "no tiktoken encoding 'gpt-2'; did you mean 'gpt2'?"),
        ("char", "tokenizer=char learns from a corpus: give one, or use tokenizer=byte"),
        ("bpe", "tokenizer=bpe learns from a corpus: give one, or use tokenizer=byte"),
        ("hf", "tokenizer=hf needs tokenizer.path=<a tokenizer.json, or a directory with one>"),
    ],
)
def test_wrong_settings_get_one_sentence(settings: str | dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_tokenizer(settings)
    assert str(caught.value).startswith(message)


def test_missing_sentencepiece_names_the_package(play: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError) as caught:
        build_tokenizer("sentencepiece", play)
    assert str(caught.value) == (
        "tokenizer=sentencepiece needs the package 'sentencepiece': pip install 'modular-gpt[sentencepiece]'"
    )


class TestHuggingFaceFile:
    """Tokenizers that come with a pretrained model."""

    def test_ids_are_those_of_the_library(self, make: Callable[[str], Tokenizer], tmp_path: Path) -> None:
        hugging_face_file(tmp_path / "tokenizer.json")
        library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        library.no_truncation()
        assert make("hf").encode(PLAY) == library.encode(PLAY, add_special_tokens=False).ids

    def test_the_end_of_text_can_be_named(self, tmp_path: Path) -> None:
        hugging_face_file(tmp_path / "tokenizer.json")
        assert build_tokenizer({"name": "hf", "path": str(tmp_path), "eos": "<s>"}).eos_id == 0
        with pytest.raises(ConfigError, match=r"tokenizer.eos: the token '<end>' is not in the vocabulary of '.*json'"):
            build_tokenizer({"name": "hf", "path": str(tmp_path), "eos": "<end>"})
        (tmp_path / "tokenizer_config.json").unlink()
        assert build_tokenizer({"name": "hf", "path": str(tmp_path / "tokenizer.json")}).eos_id is None

    @given(text=st.text("ab é🙂日", max_size=12))
    def test_sentencepiece_style_files_can_be_streamed(self, text: str) -> None:
        """Like Llama 2's: a mark for the space, one prepended to the text, byte fallback for unknown characters."""
        pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
        model = tokenizers.models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [("▁", "a"), ("a", "b")],
            unk_token="<unk>",
            byte_fallback=True,
        )
        library = tokenizers.Tokenizer(model)
        normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        library.decoder = decoders.Sequence(steps)
        tokenizer = HuggingFaceTokenizer(library, None)
        ids = tokenizer.encode(text)
        stream = tokenizer.decode_stream()
        shown = [stream.push(i) for i in ids]
        assert "".join([*shown, stream.flush()]) == tokenizer.decode(ids) == text
        assert not any("\ufffd" in chunk for chunk in shown)

    def test_invalid_files_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        for content in (None, "{", "{}", "[1]"):
            if content is not None:
                path.write_text(content)
            with pytest.raises(DataError, match=re.escape(f"'{path}'") + ".*correct tokenizer.path"):
                build_tokenizer({"name": "hf", "path": str(path)})


class TestDamage:
    """A damaged tokenizer file of a checkpoint."""

    @pytest.fixture
    def file(self, play: Corpus, tmp_path: Path) -> Path:
        build_tokenizer("bpe", play).save(tmp_path)
        return tmp_path / "tokenizer.json"

    def refused(self, file: Path) -> str:
        with pytest.raises(UserError) as caught:
            Tokenizer.load(file.parent)
        message = str(caught.value)
        assert str(file) in message and "\n" not in message
        return message

    def test_missing(self, file: Path) -> None:
        file.unlink()
        assert "there is no tokenizer file" in self.refused(file)

    def test_truncated_anywhere(self, file: Path) -> None:
        whole = file.read_bytes()
        for length in range(0, len(whole), max(1, len(whole) // 25)):
            file.write_bytes(whole[:length])
            assert "damaged" in self.refused(file)

    @given(place=st.floats(0, 0.999), bit=st.integers(0, 7))
    def test_a_flipped_bit_is_never_silent(
        self, place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("flip")
        tokenizer = CharTokenizer.build_vocab(PLAY)
        tokenizer.save(folder)
        data = bytearray((folder / "tokenizer.json").read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        (folder / "tokenizer.json").write_bytes(data)
        try:
            loaded = Tokenizer.load(folder)
        except DataError as error:
            assert str(folder) in str(error)
        else:  # the flip changed white space between values
            assert loaded.definition() == tokenizer.definition()

    def test_another_program(self, file: Path) -> None:
        hugging_face_file(file)
        assert self.refused(file).endswith("use tokenizer=hf tokenizer.path=<that file>")

    def test_an_unregistered_kind(self, file: Path) -> None:
        content = json.loads(file.read_text())
        for kind in ("os.system", "gpt2x", None, ["byte"]):
            file.write_text(json.dumps({**content, "kind": kind}))
            self.refused(file)

    @pytest.mark.parametrize("definition", [None, [], {}, {"tokenizer": 3, "eos": None}, {"tokenizer": {}, "eos": 1}])
    def test_a_definition_of_the_wrong_shape(self, definition: object, file: Path) -> None:
        content = json.loads(file.read_text())
        fingerprint = hashlib.sha256(json.dumps(["bpe", definition], sort_keys=True).encode()).hexdigest()
        file.write_text(json.dumps({**content, "definition": definition, "fingerprint": fingerprint}))
        assert "damaged" in self.refused(file)


def with_gaps(make: Callable[[str], Tokenizer], kind: str) -> Tokenizer:
    """A tokenizer with unused ids inside its vocabulary, like cl100k_base."""
    if kind == "tiktoken":
        ranks = {bytes([byte]): byte for byte in range(256)}
        return TiktokenTokenizer("gaps", r"\S+|\s+", ranks, {END_OF_TEXT: 260})
    definition = make("bpe").definition()
    definition["tokenizer"]["added_tokens"].append(
        {**definition["tokenizer"]["added_tokens"][0], "id": 700, "content": "<late>"}
    )
    definition["tokenizer"]["model"]["vocab"]["<late>"] = 700
    return type(make("bpe")).from_definition(definition)


class TestIdsWithoutText:
    """The model's vocabulary may be larger than the tokenizer's, or the tokenizer's may have gaps."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_ids_past_the_end(self, kind: str, make: Callable[[str], Tokenizer]) -> None:
        tokenizer = make(kind)
        end = tokenizer.vocab_size
        assert tokenizer.unused_ids(end) == [] == tokenizer.unused_ids(end - 1)
        assert tokenizer.unused_ids(end + 3) == [end, end + 1, end + 2]
        self.check(tokenizer, [end, end + 2, -1])

    @pytest.mark.parametrize("kind", ["tiktoken", "bpe"])
    def test_gaps(self, kind: str, make: Callable[[str], Tokenizer]) -> None:
        tokenizer = with_gaps(make, kind)
        first = {"tiktoken": 256, "bpe": make("bpe").vocab_size}[kind]
        last = tokenizer.vocab_size - 2
        gaps = list(range(first, last + 1))
        assert gaps and tokenizer.unused_ids(tokenizer.vocab_size + 1) == [*gaps, tokenizer.vocab_size]
        assert tokenizer.unused_ids(first + 1) == [first]
        with pytest.raises(DataError, match=f"id {last} is a gap in the vocabulary of this {kind} tokenizer"):
            tokenizer.decode([last])
        self.check(tokenizer, [first, last])

    @staticmethod
    def check(tokenizer: Tokenizer, unused: list[int]) -> None:
        """Ids without text are refused by the strict decode, and skipped by the tolerant one and by streams."""
        ids = tokenizer.encode("Speak, é" if tokenizer.name != "char" else "Speak")
        for place in range(len(ids) + 1):
            mixed = [*ids[:place], *unused, *ids[place:]]
            with pytest.raises(DataError, match=f"id {unused[0]} "):
                tokenizer.decode(mixed)
            assert tokenizer.decode(mixed, errors="ignore") == tokenizer.decode(ids)
            stream = tokenizer.decode_stream()
            assert "".join([*map(stream.push, mixed), stream.flush()]) == tokenizer.decode(ids)


class TestHostileFiles:
    """Files that make the compiled libraries panic, abort or hang are refused with one sentence."""

    def changed(self, tmp_path: Path, **parts: object) -> str:
        """The message with which a tokenizer.json with changed top-level keys is refused."""
        hugging_face_file(tmp_path / "tokenizer.json")
        content = json.loads((tmp_path / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps({**content, **parts}))
        with pytest.raises(DataError) as caught:
            build_tokenizer({"name": "hf", "path": str(tmp_path)}).encode("some text")
        message = str(caught.value)
        assert str(tmp_path) in message and "\n" not in message and message.endswith(": correct tokenizer.path")
        return message

    @pytest.mark.parametrize("size", [0, 3, 2**32 - 4, 12])
    def test_precompiled_tables(self, size: int, tmp_path: Path) -> None:
        charsmap = base64.b64encode(size.to_bytes(4, "little") + b"\0" * 9).decode()
        normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        assert "precompiled_charsmap is damaged" in self.changed(tmp_path, normalizer=normalizer)
        nested = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [normalizer]}]}
        assert "precompiled_charsmap is damaged" in self.changed(tmp_path, normalizer=nested)

    def test_replacements_that_grow_or_match_nothing(self, tmp_path: Path) -> None:
        def replace(pattern: str, content: str) -> dict[str, object]:
            return {"type": "Replace", "pattern": {"String": pattern}, "content": content}

        many = {"type": "Sequence", "normalizers": [replace("a", "aaaaaaaaaa")] * 9}
        assert "may make a text 1,000,000,000 times longer" in self.changed(tmp_path, normalizer=many)
        assert "replaces the empty text" in self.changed(tmp_path, normalizer=replace("", "x"))
        steps = {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}
        assert "has 100 steps" in self.changed(tmp_path, normalizer=steps)

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            ({"type": "BPE", "vocab": {}, "merges": []}, "its vocabulary is empty"),
            ({"type": "BPE", "vocab": {"a": -1}, "merges": []}, "-1 is no id of a token"),
            ({"type": "BPE", "vocab": {"a": 2**40}, "merges": []}, "1099511627776 is no id of a token"),
            ({"type": "BPE", "vocab": {"a": "0"}, "merges": []}, "'0' is no id of a token"),
            ({"type": "Unigram", "vocab": [], "unk_id": 0}, "its vocabulary is empty"),
            ({"type": "BPE"}, "its model has no vocabulary"),
            (None, "it has no model"),
            ([], "it has no model"),
        ],
    )
    def test_models(self, model: object, reason: str, tmp_path: Path) -> None:
        assert reason in self.changed(tmp_path, model=model, added_tokens=[], post_processor=None)

    def test_a_text_that_makes_the_library_fail(self) -> None:
        library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="missing"))
        with pytest.raises(DataError, match="the hf tokenizer cannot encode this text"):
            HuggingFaceTokenizer(library, None).encode("b")

    def test_panics_are_errors_and_interrupts_are_not(self) -> None:
        class Panic(BaseException):
            """Like pyo3's PanicException, which is not an Exception."""

        with pytest.raises(DataError, match=r"it failed \(one line\)"), library_errors("it failed"):
            raise Panic("one line\nanother")
        with pytest.raises(KeyboardInterrupt), library_errors("it failed"):
            raise KeyboardInterrupt

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"ranks": {"YQ==": 97, "YWI=": 97}}, "two of its tokens have the same id"),
            ({"ranks": {}}, "it has no token for some bytes"),
            ({"ranks": {"YQ==": "1"}}, "its ranks are no ids"),
            ({"special": {END_OF_TEXT: 97}}, "two of its tokens have the same id"),
            ({"pattern": "("}, "tiktoken cannot use the encoding"),
        ],
    )
    def test_ranks(self, change: dict[str, object], reason: str, make: Callable[[str], Tokenizer]) -> None:
        definition = with_gaps(make, "tiktoken").definition()
        if change.get("ranks"):
            change = {"ranks": {**definition["ranks"], **change["ranks"]}}  # type: ignore[dict-item]
        with pytest.raises(ValueError, match=reason):
            TiktokenTokenizer.from_definition({**definition, **change})


class TestOpenTokenizer:
    """A tokenizer by the path of its files or by its name."""

    def test_paths_and_names(self, make: Callable[[str], Tokenizer], tmp_path: Path) -> None:
        make("bpe").save(tmp_path)
        for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
            assert open_tokenizer(path).fingerprint == make("bpe").fingerprint
        folder = tmp_path / "hf"
        folder.mkdir()
        hugging_face_file(folder / "tokenizer.json")
        for path in (folder, folder / "tokenizer.json"):
            assert open_tokenizer(path).encode(PLAY) == make("hf").encode(PLAY)
        assert open_tokenizer("byte").name == "byte"

    @pytest.mark.parametrize("name", ["bpe", "hf", "gtp2", "no/such/path"])
    def test_names_of_neither_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"no tokenizer '{name}'.* or give the path of a tokenizer.json"):
            open_tokenizer(name)


def test_python_mistakes_get_one_sentence() -> None:
    assert CharTokenizer("hello").encode("hole") == CharTokenizer.build_vocab("hello").encode("hole")
    with pytest.raises(ConfigError, match=r"tokenizer.unknown: no choice 'skip'"):
        CharTokenizer("abc", "skip")
    with pytest.raises(ConfigError, match=r"corpus must be a Corpus, such as build_corpus\(.*got str 'some text'"):
        build_tokenizer("bpe", "some text")  # type: ignore[arg-type]
    for size in (10**15, 2**24 + 1):
        with pytest.raises(ConfigError, match=r"tokenizer.vocab_size of bpe must be at most 16,777,216"):
            build_tokenizer({"name": "bpe", "vocab_size": size})


@pytest.mark.parametrize("ids", [[1.5], "ab", 3, None, [[1, 2]], [None], torch.tensor([[1, 2]]), torch.tensor([1.0])])
def test_only_rows_of_ids_are_decoded(ids: Any) -> None:
    for tokenizer in (build_tokenizer("byte"), CharTokenizer.build_vocab("abc")):
        with pytest.raises(DataError, match="decode takes token ids, one list of whole numbers, got"):
            tokenizer.decode(ids)
        assert tokenizer.decode(torch.tensor([1, 0])) == tokenizer.decode(np.array([1, 0])) == tokenizer.decode([1, 0])


@pytest.mark.parametrize("text", [3, None, ["a"], b"a", 1.5])
def test_only_text_is_encoded(text: Any) -> None:
    for tokenizer in (build_tokenizer("byte"), CharTokenizer.build_vocab("abc")):
        with pytest.raises(DataError, match="encode takes one text, got"):
            tokenizer.encode(text)
        with pytest.raises(DataError, match="a tokenizer encodes texts, got"):
            tokenizer.encode_many(["a", text])
