"""Tiny Shakespeare (Karpathy 2015), the corpus of char-rnn: about 1.1 million characters of plays.

Source: https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare
"""

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from modular_gpt.core.atomic_files import sha256_file
from modular_gpt.core.errors import DataError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import expand_home
from modular_gpt.data.cache_dir import cache_directory, new_in_cache
from modular_gpt.data.corpora.files import FileCorpus, check_fraction, scan, split_end
from modular_gpt.data.documents import TextConfig

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FILE = "tinyshakespeare.txt"
TIMEOUT = 30  # seconds


class Shakespeare(FileCorpus, name="shakespeare"):
    """Tiny Shakespeare, 1.1 MB of plays, downloaded once and checked by its SHA-256."""

    @dataclass
    class Config(TextConfig):
        """Settings of the Tiny Shakespeare corpus.

        path: A copy of the file to use instead of the cached download.
        val_fraction: Fraction of the characters, at the end of the text, that is held out for validation.
        """

        path: str | None = None
        val_fraction: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            expand_home(self, "path")
            check_fraction(self.val_fraction)

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, Shakespeare.Config)
        path = Path(config.path) if config.path else cached()
        file = scan(path, FILE)
        if file.sha256 != SHA256:
            mismatch = _mismatch(file.sha256)
            raise DataError(f"'{path}' is not tiny Shakespeare ({mismatch}): remove it, or read it with data=text")
        self.splits = split_end([file], config.val_fraction)


def cached() -> Path:
    """The path of the file in the cache directory, after downloading it if it is missing.

    Raises:
        DataError: the file cannot be downloaded; the message has the path for a copy.
    """
    path = cache_directory() / "shakespeare" / FILE
    if not path.is_file():
        content = _download(path)
        with new_in_cache(path.parent, lambda directory: _is_intact(directory / FILE)) as directory:
            (directory / FILE).write_bytes(content)
    return path


def _download(path: Path) -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT) as response:
            content: bytes = response.read()
        if (found := hashlib.sha256(content).hexdigest()) != SHA256:
            raise OSError(_mismatch(found))
    except OSError as error:  # the base of all errors of urllib
        remedy = f"put the file at {path}, or use data=python_stdlib"
        raise DataError(f"cannot download {URL} ({error}): {remedy}") from error
    return content


def _is_intact(path: Path) -> bool:
    return path.is_file() and sha256_file(path) == SHA256


def _mismatch(found: str) -> str:
    return f"SHA-256 {found[:12]}... instead of {SHA256[:12]}..."
