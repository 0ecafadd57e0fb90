"""Token files: content, reuse, damage, and concurrent or failing processes."""

import errno
import gzip
import itertools
import json
import logging
import math
import os
import resource
import shutil
import signal
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modular_gpt.core import atomic_files as files
from modular_gpt.core.errors import DataError
from modular_gpt.data import SPLITS, Corpus, PreparedData, build_corpus, build_tokenizer, prepare
from modular_gpt.data.cache_dir import ABANDONED, cache_directory, new_in_cache
from modular_gpt.data.token_cache import smallest_dtype
from tests.data.conftest import PLAY


def only(directory: Path) -> Path:
    """The only entry of a directory."""
    entries = list(directory.iterdir())
    assert len(entries) == 1, entries
    return entries[0]


def text_of(corpus: Corpus, split: str) -> str:
    return "".join(chunk.text for chunk in corpus.documents(split))


class TestContent:
    """Content of the token files and of the manifest."""

    @pytest.mark.parametrize("tokenizer_name", ["byte", "char", "bpe", "wordpiece"])
    def test_tokens_are_those_of_the_text(self, tokenizer_name: str, play: Corpus) -> None:
        tokenizer = build_tokenizer(tokenizer_name, play)
        data = prepare(play, tokenizer)
        for split, tokens in zip(SPLITS, (data.train, data.validation), strict=True):
            text = text_of(play, split)
            assert tokens.array.tolist() == tokenizer.encode(text)
            assert len(tokens) == tokens.count == len(tokens.array)
            assert tokens.bytes == len(text.encode())
            assert isinstance(tokens.array, np.memmap) and not tokens.array.flags.writeable

    @pytest.mark.parametrize(
        ("vocab_size", "name"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
    )
    def test_the_smallest_type_that_holds_every_id(self, vocab_size: int, name: str) -> None:
        assert smallest_dtype(vocab_size) == np.dtype(name)

    def test_the_end_of_text_separates_documents(self, text_corpus: Callable[..., Corpus]) -> None:
        corpus = text_corpus("one two\n" * 20, "three four\n" * 20, "five six\n" * 20)
        tokenizer = build_tokenizer("bpe", corpus)
        data = prepare(corpus, tokenizer)
        for split, tokens in zip(SPLITS, (data.train, data.validation), strict=True):
            groups = itertools.groupby(corpus.documents(split), lambda chunk: chunk.document)
            texts = ["".join(chunk.text for chunk in group) for _, group in groups]
            expected = [*tokenizer.encode(texts[0])]
            for text in texts[1:]:
                expected += [tokenizer.eos_id, *tokenizer.encode(text)]
            assert tokens.array.tolist() == expected
        assert data.manifest["splits"]["train"]["documents"] == 3

    def test_the_manifest(self, play: Corpus, cache: Path) -> None:
        tokenizer = build_tokenizer("char", play)
        data = prepare(play, tokenizer)
        manifest = json.loads((only(cache / "tokens") / "manifest.json").read_text())
        assert manifest["corpus"] == {"files": 1, "bytes": len(PLAY.encode()), "fingerprint": play.fingerprint}
        assert manifest["tokenizer"] == {
            "name": "char",
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        }
        assert manifest["dtype"] == "|u1"
        assert {split: info["tokens"] for split, info in manifest["splits"].items()} == {
            "train": data.train.count,
            "validation": data.validation.count,
        }
        assert data.identity == {"corpus": play.fingerprint, "tokenizer": tokenizer.fingerprint}

    def test_the_zlib_size_is_that_of_the_validation_text(self, play: Corpus) -> None:
        data = prepare(play, build_tokenizer("byte"))
        text = text_of(play, "validation").encode()
        assert data.validation.zlib_bits_per_byte == 8 * len(zlib.compress(text, 9)) / len(text)
        assert data.train.zlib_bits_per_byte is None
        assert abs(len(gzip.compress(text, 9)) - len(zlib.compress(text, 9))) < 20  # agrees with gzip

    def test_bits_per_byte(self, play: Corpus) -> None:
        """A uniform model over bytes needs 8 bits; over another vocabulary, log2 of it for each token."""
        by_byte = prepare(play, build_tokenizer("byte")).validation
        assert math.isclose(by_byte.bits_per_byte(math.log(256)), 8)
        tokenizer = build_tokenizer("char", play)
        by_char = prepare(play, tokenizer).validation
        expected = math.log2(tokenizer.vocab_size) * by_char.count / by_char.bytes
        assert math.isclose(by_char.bits_per_byte(math.log(tokenizer.vocab_size)), expected)

    def test_the_default_corpus(self) -> None:
        corpus = build_corpus("python_stdlib")
        data = prepare(corpus, build_tokenizer("byte"))
        assert data.train.bytes + data.validation.bytes == corpus.describe()["bytes"]
        assert data.train.count == data.train.bytes  # no separator: the byte tokenizer has no end of text
        assert 7e6 < data.train.bytes < 9.5e6 and 0.8e6 < data.validation.bytes < 1.2e6
        assert data.validation.zlib_bits_per_byte == pytest.approx(1.96, abs=0.05)

    def test_memory_does_not_grow_with_the_text(
        self, text_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["modular_gpt.data.prepare"], "BATCH", 2**17)
        monkeypatch.setattr("modular_gpt.data.corpora.files.BLOCK", 2**17)
        peaks = []
        for times in (1000, 4000):  # 2.9 and 11.6 MB
            corpus = text_corpus(PLAY * times)
            tracemalloc.start()
            prepare(corpus, build_tokenizer("byte"))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.1 * peaks[0], peaks


class TestReuse:
    """Token files are written once."""

    def test_files_are_reused(self, play: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = build_tokenizer("byte")
        first = prepare(play, tokenizer)
        monkeypatch.setattr(type(tokenizer), "encode_many", None)  # encoding again would fail
        again = prepare(play, tokenizer)
        assert again.train.fingerprint == first.train.fingerprint
        only(cache / "tokens")

    def test_a_changed_corpus_or_tokenizer_has_its_own(self, text_corpus: Callable[..., Corpus], cache: Path) -> None:
        for text in (PLAY, PLAY + "!"):
            for tokenizer_name in ("byte", "char"):
                corpus = text_corpus(text)
                prepare(corpus, build_tokenizer(tokenizer_name, corpus))
        assert len(list((cache / "tokens").iterdir())) == 4

    def test_another_place(self, play: Corpus, cache: Path, tmp_path: Path) -> None:
        data = prepare(play, build_tokenizer("byte"), tmp_path / "elsewhere")
        assert data.train.path.is_relative_to(tmp_path / "elsewhere") and not cache.exists()

    def test_the_cache_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODULAR_GPT_CACHE", "~/somewhere")
        assert cache_directory() == Path.home() / "somewhere"
        monkeypatch.delenv("MODULAR_GPT_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/x")
        monkeypatch.setattr(sys, "platform", "linux")
        assert cache_directory() == Path("/x/modular_gpt")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_directory() == Path.home() / ".cache" / "modular_gpt"
        monkeypatch.setattr(sys, "platform", "darwin")
        assert cache_directory() == Path.home() / "Library" / "Caches" / "modular_gpt"


class TestDamage:
    """Damaged files are detected, rebuilt and logged."""

    @pytest.fixture
    def rebuilt(
        self, play: Corpus, cache: Path, caplog: pytest.LogCaptureFixture
    ) -> Iterator[Callable[[Callable[[Path], None]], str]]:
        """Damage the prepared files, prepare again, check the result and return the log."""
        tokenizer = build_tokenizer("byte")
        whole = prepare(play, tokenizer)
        contents = {path.name: path.read_bytes() for path in only(cache / "tokens").iterdir()}

        def damage(how: Callable[[Path], None]) -> str:
            caplog.clear()
            how(only(cache / "tokens"))
            with caplog.at_level(logging.WARNING):
                data = prepare(play, tokenizer)
            assert data.train.array.tolist() == whole.train.array.tolist()
            assert {path.name: path.read_bytes() for path in only(cache / "tokens").iterdir()} == contents
            return caplog.text

        return damage

    @pytest.mark.parametrize("name", ["train.bin", "validation.bin"])
    def test_truncated(self, name: str, rebuilt: Callable[..., str]) -> None:
        message = rebuilt(lambda folder: os.truncate(folder / name, 100))
        assert f"{name}' has 100 bytes instead of" in message and "building the token files again" in message

    @pytest.mark.parametrize("name", ["train.bin", "validation.bin"])
    def test_one_bit_flipped(self, name: str, rebuilt: Callable[..., str]) -> None:
        def flip(folder: Path) -> None:
            data = bytearray((folder / name).read_bytes())
            data[len(data) // 2] ^= 4
            (folder / name).write_bytes(data)

        assert f"{name}' differs from the SHA-256 in its manifest" in rebuilt(flip)

    @pytest.mark.parametrize("name", ["train.bin", "validation.bin", "manifest.json"])
    def test_missing_or_a_folder(self, name: str, rebuilt: Callable[..., str]) -> None:
        assert name in rebuilt(lambda folder: (folder / name).unlink())

        def folder_instead(folder: Path) -> None:
            (folder / name).unlink()
            (folder / name).mkdir()

        assert name in rebuilt(folder_instead)

    @pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"sha256": 3}'])
    def test_an_invalid_manifest(self, content: bytes, rebuilt: Callable[..., str]) -> None:
        assert "manifest.json' is damaged" in rebuilt(lambda folder: (folder / "manifest.json").write_bytes(content))

    def test_any_byte_of_the_manifest(self, rebuilt: Callable[..., str]) -> None:
        def change(old: str, new: str) -> Callable[[Path], None]:
            def edit(folder: Path) -> None:
                text = (folder / "manifest.json").read_text()
                assert old in text
                (folder / "manifest.json").write_text(text.replace(old, new, 1))

            return edit

        for old, new in (('"bytes": ', '"bytes": 1'), ("|u1", "<u2"), ('"zlib_bits_per_byte": null', '"zlib": 1')):
            assert "manifest.json' is damaged" in rebuilt(change(old, new))

    def test_files_of_a_killed_process_are_removed(self, play: Corpus, cache: Path) -> None:
        old, fresh = (cache / "tokens" / f"{name}.tmp-1-ab" for name in ("old", "fresh"))
        for folder in (old, fresh):
            folder.mkdir(parents=True)
            (folder / "train.bin").write_bytes(b"x")
        long_ago = time.time() - ABANDONED - 60
        os.utime(old, (long_ago, long_ago))
        prepare(play, build_tokenizer("byte"))
        assert not old.exists() and fresh.exists()  # the fresh one may belong to a running process


def fork(work: Callable[[], None]) -> int:
    """Start a process that does ``work`` and ends with status 0 if nothing was raised; returns its id."""
    if child := os.fork():
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestProcesses:
    """Concurrent and killed processes."""

    @pytest.mark.parametrize("damaged", [False, True])
    def test_all_build_the_same_at_once(self, damaged: bool, play: Corpus, cache: Path, tmp_path: Path) -> None:
        if damaged:
            os.truncate(prepare(play, build_tokenizer("byte")).train.path, 7)
        replace, count = files._replace_directory, 6

        def work(number: int) -> None:
            def together(target: Path, new: Path, valid: Callable[[Path], bool]) -> None:
                (tmp_path / f"ready{number}").touch()
                while len(list(tmp_path.glob("ready*"))) < count:  # all have built the files, none has renamed them
                    time.sleep(0.001)
                replace(target, new, valid)

            files._replace_directory = together
            sys.modules["modular_gpt.data.token_cache"].one_at_a_time = lambda _: (
                nullcontext()
            )  # as on a file system without locks
            data = prepare(play, build_tokenizer("byte"))
            assert bytes(data.train.array) == text_of(play, "train").encode()
            (tmp_path / f"done{number}").write_text(data.train.fingerprint)

        children = [fork(lambda number=number: work(number)) for number in range(count)]
        assert [status_of(child) for child in children] == [0] * count
        data = prepare(play, build_tokenizer("byte"))
        assert {path.read_text() for path in tmp_path.glob("done*")} == {data.train.fingerprint}
        only(cache / "tokens")  # no temporary is left

    @pytest.mark.parametrize("moment", ["train.bin", "validation.bin", "manifest.json"])
    def test_killed_while_writing(self, moment: str, play: Corpus, cache: Path) -> None:
        """SIGKILL in the middle of each file."""
        module = sys.modules["modular_gpt.data.prepare"]
        write = module._write

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            def dying(path: Path, *arguments: object) -> object:
                if path.name == moment:
                    path.write_bytes(b"half")
                    die()
                return write(path, *arguments)

            module._write = dying
            sys.modules["modular_gpt.data.token_cache"]._manifest_sha256 = lambda manifest: die()
            prepare(play, build_tokenizer("byte"))

        assert status_of(fork(work)) == -signal.SIGKILL
        assert ".tmp-" in only(cache / "tokens").name
        data = prepare(play, build_tokenizer("byte"))
        assert bytes(data.train.array) == text_of(play, "train").encode()

    def test_interrupted(self, play: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("modular_gpt.data.tokenizers.byte.ByteTokenizer.encode_many", interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare(play, build_tokenizer("byte"))
        assert list((cache / "tokens").iterdir()) == []
        prepare(play, build_tokenizer("byte"))


class TestRaces:
    """Many writers of one directory: all succeed, and every reader sees the complete files of one writer."""

    def race(self, target: Path, keep: Callable[[Path], bool], rounds: int) -> list[BaseException]:
        failures: list[BaseException] = []

        def write(number: int) -> None:
            try:
                for turn in range(rounds):
                    with new_in_cache(target, keep) as new:
                        (new / "first").write_text(f"{number} {turn}")
                        (new / "second").write_text(f"{number} {turn}")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures

    @pytest.mark.parametrize("keeps", [False, True])
    def test_threads(self, keeps: bool, cache: Path) -> None:
        target = cache / "place"
        assert self.race(target, lambda _: keeps, rounds=15) == []
        assert (target / "first").read_text() == (target / "second").read_text()
        only(cache)

    def test_processes(self, cache: Path) -> None:
        target = cache / "place"
        children = [fork(lambda: self.end(self.race(target, lambda _: False, rounds=4))) for _ in range(4)]
        assert [status_of(child) for child in children] == [0] * 4
        assert (target / "first").read_text() == (target / "second").read_text()
        only(cache)

    @staticmethod
    def end(failures: list[BaseException]) -> None:
        if failures:
            raise failures[0]

    def test_a_directory_that_disappears_before_it_is_inspected(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The directory of another process blocks the rename, and a third one moves it aside before it is inspected."""
        rename, refused = os.rename, [True, True]

        def crowded(old: Path, new: Path) -> None:
            if refused and new == cache / "place":
                refused.pop()
                raise OSError(errno.ENOTEMPTY, "Directory not empty")
            rename(old, new)

        monkeypatch.setattr(files.os, "rename", crowded)
        with new_in_cache(cache / "place", lambda _: False) as new:
            (new / "file").touch()
        assert (cache / "place" / "file").exists() and not refused

    def test_a_running_preparation_is_not_cleaned_up(self, cache: Path) -> None:
        """A preparation takes longer than a day, and another process starts one."""
        long_ago = time.time() - ABANDONED - 60
        with new_in_cache(cache / "slow", lambda _: False) as slow:
            (slow / "train.bin").write_bytes(b"half")
            os.utime(slow, (long_ago, long_ago))

            def other() -> None:
                with new_in_cache(cache / "quick", lambda _: False):
                    pass

            assert status_of(fork(other)) == 0
            assert (slow / "train.bin").read_bytes() == b"half"
        assert (cache / "slow" / "train.bin").exists()


class TestPlace:
    """A cache that cannot be written."""

    def test_a_full_disk(self, text_corpus: Callable[..., Corpus], cache: Path) -> None:
        """The kernel refuses the write; the limit is lifted afterwards."""
        corpus = text_corpus(PLAY * 40)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(DataError) as caught:
                prepare(corpus, build_tokenizer("byte"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(caught.value) == (
            f"cannot write to {cache / 'tokens'} (File too large): free some space there or set"
            " MODULAR_GPT_CACHE to another directory"
        )
        assert list((cache / "tokens").iterdir()) == []

    def test_no_directory(self, play: Corpus, cache: Path) -> None:
        cache.write_text("a file where the cache should be")
        with pytest.raises(DataError) as caught:
            prepare(play, build_tokenizer("byte"))
        assert str(caught.value) == (
            f"cannot write to {cache / 'tokens'} (Not a directory): free some space there or set"
            " MODULAR_GPT_CACHE to another directory"
        )

    def test_a_read_only_cache(self, play: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare(play, build_tokenizer("byte"))
        monkeypatch.setattr(Path, "mkdir", None)
        monkeypatch.setattr(os, "rename", None)
        assert prepare(play, build_tokenizer("byte")).train.count > 0


class TestIdentity:
    """Identity of the data, as compared by a checkpoint."""

    @pytest.fixture
    def data(self, play: Corpus) -> PreparedData:
        return prepare(play, build_tokenizer("byte"))

    def test_the_same(self, data: PreparedData) -> None:
        data.check_identity(json.loads(json.dumps(data.identity)))

    def test_the_text_changed(self, data: PreparedData) -> None:
        with pytest.raises(DataError) as caught:
            data.check_identity({**data.identity, "corpus": "0123456789abcdef"})
        assert str(caught.value) == (
            f"the corpus is not the one of the checkpoint (fingerprint {data.identity['corpus'][:12]} now,"
            " 0123456789ab then): restore the text, or start a new run"
        )

    def test_another_tokenizer(self, data: PreparedData) -> None:
        for recorded in ({**data.identity, "tokenizer": "x"}, {"corpus": data.identity["corpus"]}):
            with pytest.raises(DataError, match="use the tokenizer of the checkpoint, or start a new run"):
                data.check_identity(recorded)

    def test_the_vocabulary_of_the_model(self, data: PreparedData) -> None:
        data.check_vocabulary(256)
        data.check_vocabulary(512)
        with pytest.raises(DataError) as caught:
            data.check_vocabulary(255)
        assert str(caught.value) == (
            "the tokenizer has 256 ids but the model only 255: set vocab_size to 256 or more,"
            " or take the tokenizer the model was trained with"
        )


@settings(max_examples=30)  # every example writes to the disk
@given(texts=st.lists(st.text("aé🙂 \n", max_size=40), min_size=1, max_size=4), batch=st.integers(1, 50))
def test_batches_of_texts_do_not_change_the_tokens(
    texts: list[str], batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("batched")
    for number, text in enumerate([*texts, "some more text"]):
        (folder / f"{number}.txt").write_bytes(text.encode())
    corpus = build_corpus({"name": "text", "path": str(folder / "*.txt"), "deduplicate": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["modular_gpt.data.prepare"], "BATCH", batch)
        data = prepare(corpus, build_tokenizer("byte"), folder / "cache")
    whole = bytes(data.train.array) + bytes(data.validation.array)
    assert whole.decode() == "".join(texts) + "some more text"
    shutil.rmtree(folder)
