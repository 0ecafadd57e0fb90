"""Text files of the user's own."""

from dataclasses import dataclass
from typing import Any

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.data.corpora.files import FileCorpus, check_fraction, find, scan, split_end


class Text(FileCorpus, name="text"):
    """Your own UTF-8 files: data.path=<file, pattern or list of these>."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a corpus of text files.

        path: A path, a pattern such as corpus/**/*.txt, or a list of paths and patterns.
        val_fraction: Fraction of all characters, at the end of the text, that is held out for validation.
        """

        path: Any = None  # str or list[str]: a structured config cannot spell that union
        val_fraction: float = 0.1

        def __post_init__(self) -> None:
            check_fraction(self.val_fraction)

    def __init__(self, config: ComponentConfig) -> None:
        assert isinstance(config, Text.Config)
        self.splits = split_end([scan(path) for path in find(_patterns(config.path))], config.val_fraction)


def _patterns(path: Any) -> list[str]:
    patterns = [path] if isinstance(path, str) else path
    if not patterns:
        raise ConfigError("data=text needs data.path=<file or pattern>, such as data.path='corpus/**/*.txt'")
    if not isinstance(patterns, list) or not all(isinstance(each, str) and each for each in patterns):
        raise ConfigError(f"data.path must be a path, a pattern or a list of these, got {path!r}")
    return patterns
