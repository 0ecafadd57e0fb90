"""Fine-tuning: a run that starts from the weights of another model, whose components it may replace."""

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

WINDOWS = 8  # from the beginning of the validation text, on which the loss before training is measured


def open_source(name: str) -> Opened:
    """Open the model to start from, on the CPU and in float32, the dtype of weights in training."""
    return open_model(name, torch.device("cpu"), torch.float32)


def tokenizer_of(
    config: RunConfig, corpus: Corpus, source: Opened | None, checkpoint: CheckpointReader | None
) -> Tokenizer:
    """The tokenizer of a run: that of the model it starts from if the settings are equal, else a new one.

    A tokenizer that learns its vocabulary would learn other tokens from the new text than those that the model knows.

    Raises:
        ConfigError: a run is resumed with another ``init_from`` than it began with.
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
    """A model of this config with the weights of ``source`` where they fit, and the names of newly initialised ones.

    say: called with a report on each tensor, and with the loss of both models before training
    """
    model, report = transplant(source.model, config)
    say(f"Weights   from {name}\n{report}")
    if not _same_ids(source, tokenizer, data.prompt(1000)):
        say("Loss      is not compared before training: the weights were trained with another tokenizer")
        return model, report.new_weights()
    block = min(config.context_length, source.model.config.context_length)
    batch = data.beginning(WINDOWS, block)
    before, after = (_loss(evaluated, batch) for evaluated in (source.model, model))
    say(
        f"Loss      before training, on the first {int((batch[1] != IGNORED).sum()):,} tokens to validate:"
        f" {before:.4f} with the original components, {after:.4f} with those of this run"
    )
    return model, report.new_weights()


def _same_ids(source: Opened, tokenizer: Tokenizer, ids: list[int]) -> bool:
    """Whether the tokenizer of ``source`` encodes the text of ``ids`` to the same ids as ``tokenizer``."""
    original = source.tokenizer
    if original is None:  # only the number of its ids is known
        return source.model.config.vocab_size == tokenizer.vocab_size
    if original.fingerprint == tokenizer.fingerprint:
        return True
    text = tokenizer.decode(ids, errors="ignore")
    try:
        return list(original.encode(text)) == list(tokenizer.encode(text))
    except DataError:  # the text has characters that the original tokenizer does not know
        return False


@torch.no_grad()
def _loss(model: GPTModel, batch: Batch) -> float:
    """Mean cross-entropy of the targets of a batch."""
    training = model.training
    output = model.eval()(*batch)
    model.train(training)
    return float(output.losses["cross_entropy"])
