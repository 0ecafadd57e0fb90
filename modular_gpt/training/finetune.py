"""A run that starts from the weights of another model, some of whose parts it may change."""

from collections.abc import Callable

import torch

from modular_gpt.checkpoint import CheckpointReader
from modular_gpt.checkpoint.resolve import Opened, open_model, recorded_tokenizer
from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.registry import decode
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import Batch, PreparedData, Tokenizer, build_tokenizer
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.surgery import transplant
from modular_gpt.training.config import RunConfig

WINDOWS = 8  # of the validation text, from its beginning, on which a loss before any training is measured


def open_source(name: str) -> Opened:
    """The model to start from, on the CPU, with the weights that training keeps: float32."""
    return open_model(name, torch.device("cpu"), torch.float32)


def tokenizer_of(
    config: RunConfig, corpus: Corpus, source: Opened | None, checkpoint: CheckpointReader | None
) -> Tokenizer:
    """The tokenizer of a run.

    One that learned from a text is taken from the model that the run starts from, where the settings are the same:
    the new text would teach it other tokens than those which the model knows.

    Raises:
        ConfigError: the run to be resumed started from something else.
    """
    if config.init_from is not None and checkpoint is not None:
        meta, before = checkpoint.meta, checkpoint.tokenizer
        if meta.get("run", {}).get("init_from") != config.init_from:
            raise ConfigError(
                f"init_from={config.init_from} and resume={config.resume}: a run that is resumed has its weights;"
                " leave one of them out"
            )
    elif source is not None:
        meta, before = source.meta, source.tokenizer
    else:
        return build_tokenizer(config.tokenizer, corpus).for_new_model()
    recorded = recorded_tokenizer(meta)
    same = before is not None and recorded is not None and decode("tokenizer", recorded) == config.tokenizer
    return before if same and before is not None else build_tokenizer(config.tokenizer, corpus)


def init_from_source(
    name: str,
    source: Opened,
    config: GPTConfig,
    data: PreparedData,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> tuple[GPTModel, list[str]]:
    """A model of this config with the weights of ``source`` where they fit, and the names of those that are new.

    Reports what became of each tensor, and the loss on the beginning of the validation text before any training.
    """
    model, report = transplant(source.model, config)
    say(f"Weights   from {name}\n{report}")
    if not _same_ids(source, tokenizer, data.prompt(1000)):
        say("Loss      is not compared before training: the tokenizer is not the one that these weights were made for")
        return model, report.new_weights()
    block = min(config.context_length, source.model.config.context_length)
    batch = data.beginning(WINDOWS, block)
    before, after = (_loss(evaluated, batch) for evaluated in (source.model, model))
    say(
        f"Loss      before training, on the first {int((batch[1] != IGNORED).sum()):,} tokens to validate:"
        f" {before:.4f} with the original parts, {after:.4f} with those of this run"
    )
    return model, report.new_weights()


def _same_ids(source: Opened, tokenizer: Tokenizer, ids: list[int]) -> bool:
    """Whether a text, of which these are ids, is the same ids for the model to start from."""
    original = source.tokenizer
    if original is None:  # nothing is known but how many ids there are
        return source.model.config.vocab_size == tokenizer.vocab_size
    if original.fingerprint == tokenizer.fingerprint:
        return True
    text = tokenizer.decode(ids, errors="ignore")
    try:
        return list(original.encode(text)) == list(tokenizer.encode(text))
    except DataError:  # characters that theirs does not know
        return False


@torch.no_grad()
def _loss(model: GPTModel, batch: Batch) -> float:
    """Mean cross-entropy of the targets of a batch."""
    training = model.training
    output = model.eval()(*batch)
    model.train(training)
    return float(output.losses["cross_entropy"])
