"""Training on packed documents: the loss of a batch equals that of its documents, and a run resumes bitwise."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.targets import IGNORED
from modular_gpt.nn.attention.linear import LinearAttention
from tests.training.small import assert_same_ending, config, run, stop_after, trainer_of, write_text


def packed(folder: Path, **settings: Any) -> Any:
    """Config of a run on a text of several documents that are separated."""
    for number in range(6):
        write_text(folder / f"part{number}.txt", words=200 + 10 * number)
    data = {"name": "text", "path": str(folder / "part*.txt"), "documents": True}
    return config(folder, data=data, **settings)


def test_the_loss_of_a_batch_equals_that_of_its_documents(folder: Path) -> None:
    trainer = trainer_of(packed(folder, batch_size=32))
    model = trainer.model.eval()
    ids, targets, documents = next(
        batch for step in range(100) if len((batch := trainer.batches.batch(step))[2].unique(dim=1)[0]) > 1
    )
    total, count = 0.0, 0
    for row, target, numbers in zip(ids, targets, documents, strict=True):
        for number in numbers.unique():
            mask = numbers == number
            counted = int((target[mask] != IGNORED).sum())
            if counted:
                total += float(model(row[mask][None], target[mask][None]).loss.detach()) * counted
                count += counted
    loss = trainer.forward(ids, targets, documents=documents).loss
    assert float(loss.detach()) == pytest.approx(total / count, abs=1e-5)
    assert bool((documents[:, :1] != documents[:, -1:]).any()), "no window has several documents"


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation": 2, "model": {"attention": "swa"}}])
def test_a_run_resumes_bitwise(settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(packed(folder, **settings)).directory
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        stopped = run(packed(folder, **settings)).directory
    resumed = run(packed(folder, resume=str(stopped), **settings)).directory
    assert_same_ending(whole, resumed)


def test_an_attention_that_mixes_documents_is_refused_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinearAttention, "separates_documents", False)
    with pytest.raises(ConfigError, match="attention=linear cannot keep packed documents apart"):
        run(packed(folder, model={"attention": "linear"}))
    assert not list((folder / "runs").glob("2*"))


def test_compiled_code_separates_documents(folder: Path) -> None:
    trainer = trainer_of(packed(folder, model={"n_layers": 1}))
    ids, targets, documents = trainer.batches.batch(0)
    expected = trainer.forward(ids, targets, documents=documents).loss
    torch._dynamo.reset()
    compiled = torch.compile(trainer.model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(ids, targets, documents=documents).loss, expected)
