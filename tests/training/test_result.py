"""The result of ``train``: the model, the tokenizer and the metrics of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt.checkpoint import load_checkpoint
from modular_gpt.core.errors import ConfigError
from modular_gpt.training import load_config, train
from modular_gpt.training.metrics import read_metrics
from tests.training.small import one_layer as config
from tests.training.small import run, stop_after


def test_a_run_gives_its_model_tokenizer_and_history(folder: Path) -> None:
    result = run(config(folder))
    best = load_checkpoint(result.directory)
    assert result.model is result.model and not result.model.training
    for name, tensor in best.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor)
    assert result.tokenizer is not None and best.tokenizer is not None
    assert result.tokenizer.fingerprint == best.tokenizer.fingerprint
    written = result.model.generate("the cat", 5, seed=1)
    ids = result.model.generate([result.tokenizer.encode("the cat")], 5, seed=1)
    assert written == result.tokenizer.decode(ids[0])
    assert result.history.entries == read_metrics(result.directory)
    assert result.history.steps == [3, 6, 9, 12] and result.history.validation_steps == [4, 8, 12]
    figure: Any = result.plot()
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == result.history.train_loss


def test_a_stopped_run_and_a_dry_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        stopped = run(config(folder))
    assert stopped.outcome is None and stopped.history.interrupted
    assert stopped.model.generate("the", 3).startswith("the")
    whole = train(load_config(stopped.directory), quiet=True)
    assert whole.history.steps == [3, 6, 9, 12] and not whole.history.interrupted
    dry = train(config(folder, dry_run=True), quiet=True)
    for name in ("model", "tokenizer", "history"):
        with pytest.raises(ConfigError, match="a dry run trains nothing"):
            getattr(dry, name)
