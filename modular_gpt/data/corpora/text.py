"""Text files of the user's own."""

from dataclasses import dataclass
from typing import Any

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import expand_home
from modular_gpt.data.corpora.files import FileCorpus, check_fraction, find_files, path_patterns, scan, split_end
from modular_gpt.data.documents import TextConfig


class Text(FileCorpus, name="text"):
    """Your own UTF-8 files: data.path=<file, pattern or list of these>."""

    @dataclass
    class Config(TextConfig):
        """Settings of a corpus of text files.

        path: A path, a pattern such as corpus/**/*.txt, or a list of paths and patterns.
        val_fraction: Fraction of all characters, at the end of the text, that is held out for validation.
        """

        path: Any = None  # str or list[str]: a structured config cannot spell that union
        val_fraction: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            expand_home(self, "path")
            check_fraction(self.val_fraction)

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, Text.Config)
        if not config.path:
            raise ConfigError("data=text needs data.path=<file or pattern>, such as data.path='corpus/**/*.txt'")
        files = find_files(path_patterns(config.path))
        self.splits = split_end([scan(path) for path in files], config.val_fraction)
