"""Mixtures of corpora, each with a share of the training rows."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, entries
from modular_gpt.core.validation import shown
from modular_gpt.data.corpora.base import Corpus, TextChunk
from modular_gpt.data.prepared import PreparedData
from modular_gpt.data.prepared_mixture import CYCLE, PreparedMixture, Source, places_of
from modular_gpt.data.tokenizers.base import Tokenizer


class Mixture(Corpus, name="mixture"):
    """Rows of several corpora in given shares: data.sources={a: {path: a.txt, weight: 2}, b: b.txt}."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a mixture of corpora.

        sources: A mapping from the name of each source to its settings, which are those of a corpus (its name is text
            by default) and a weight (1 by default); or to the name of a corpus, or the path of a text.
        """

        sources: dict[str, Any] = field(default_factory=dict)

        def __post_init__(self) -> None:
            if self.sources:
                self.sources = sources_by_name(self.sources)
                places_of(self.weights())
                self.configs()

        def weights(self) -> dict[str, float]:
            """The weight of each source by its name."""
            return {name: settings["weight"] for name, settings in self.sources.items()}

        def configs(self) -> dict[str, ComponentConfig]:
            """The settings of the corpus of each source by its name."""
            settings = {
                name: {setting: value for setting, value in source.items() if setting != "weight"}
                for name, source in self.sources.items()
            }
            return {name: decode("data", values) for name, values in settings.items()}

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, Mixture.Config)
        if not config.sources:
            example = "data.sources={a: {path: a.txt, weight: 2}, b: b.txt}"
            raise ConfigError(f"data=mixture needs data.sources, such as {example}")
        self.places = places_of(config.weights())
        self.corpora: dict[str, Corpus] = {name: settings.build() for name, settings in config.configs().items()}

    @classmethod
    def tokenizer_config(cls, config: Any, tokenizer: ComponentConfig) -> ComponentConfig:
        """The settings after those of each source in turn (``Corpus.tokenizer_config``).

        Raises:
            ConfigError: a source cannot be encoded by the tokenizer.
        """
        for settings in config.configs().values():
            tokenizer = Corpus.of(settings).tokenizer_config(settings, tokenizer)
        return tokenizer

    def documents(self, split: str) -> Iterator[TextChunk]:
        """The documents of all sources, one source after another; weights have no effect."""
        for name, corpus in self.corpora.items():
            for chunk in corpus.documents(split):
                yield TextChunk(f"{name}: {chunk.document}", chunk.text)

    def characters(self, split: str) -> int | None:
        counts = [corpus.characters(split) for corpus in self.corpora.values()]
        return None if None in counts else sum(count or 0 for count in counts)

    def prepare(self, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> PreparedData:
        """Prepare each source separately, and mix their rows."""
        prepared = {name: corpus.prepare(tokenizer, cache_dir) for name, corpus in self.corpora.items()}
        sources = [Source(name, self.places[name], data) for name, data in prepared.items()]
        manifest: PlainDict = {
            "corpus": {**self.describe(), "fingerprint": self.fingerprint},
            "tokenizer": tokenizer.describe(),
            "sources": {source.name: source.data.manifest for source in sources},
        }
        return PreparedMixture(sources, manifest)

    @property
    def fingerprint(self) -> str:
        content = [[name, self.places[name], corpus.fingerprint] for name, corpus in self.corpora.items()]
        return hashlib.sha256(json.dumps(["mixture", *content]).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        return {"sources": len(self.corpora), **{name: f"{places / CYCLE:.1%}" for name, places in self.places.items()}}


def sources_by_name(sources: PlainMapping) -> dict[str, PlainDict]:
    """The settings of each source by its name, with the name of its corpus and its weight.

    Raises:
        ConfigError: a source is neither settings, a name nor a path, or its weight is no number above 0.
    """
    found: dict[str, PlainDict] = {}
    for name, source in sources.items():
        settings = dict(_settings(name, source))
        weight = settings.setdefault("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ConfigError(f"data.sources.{name}.weight must be a number above 0, got {shown(weight)}")
        found[str(name)] = {"name": "text", **settings}
    return found


def _settings(name: str, source: object) -> PlainMapping:
    """The settings of a source that may be given by the name of a corpus or by a path."""
    if isinstance(source, Mapping):
        return source
    if isinstance(source, (str, Path)) and str(source):
        return {"name": str(source)} if str(source) in entries("data") else {"path": str(source)}
    raise ConfigError(
        f"data.sources.{name} must be settings such as {{path: a.txt, weight: 2}}, the name of a corpus or a path, got"
        f" {shown(source)}"
    )
