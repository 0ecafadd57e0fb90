"""Direct preference optimisation: the published formula, a fixed reference model, and exact resumes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt.core.errors import CheckpointError, ConfigError, DataError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import build_corpus, build_tokenizer
from modular_gpt.data.prepared_pairs import Pair, PreparedPairs
from modular_gpt.model.loss import LossConfig
from modular_gpt.training import RunConfig, train
from modular_gpt.training.config import OBJECTIVES as NAMES
from modular_gpt.training.metrics import read_metrics
from modular_gpt.training.objectives import OBJECTIVES, ObjectiveConfig, dpo_losses, row_logprobs
from tests.training.small import ending, stop_after, trainer_of

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "context_length": 24}
FIXED = {"sample_tokens": 0, "eval_batches": 1, "device": "cpu", "compile": False, "threads": 1, "precision": "float32"}
WORDS = ["red", "green", "blue", "white", "black", "gold"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run to start from, and pairs that prefer the answer in capital letters."""
    folder = tmp_path_factory.mktemp("preferences")
    pairs = [{"prompt": f"{a} {b}: ", "chosen": b.upper(), "rejected": a} for a in WORDS for b in WORDS if a != b]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "text.txt").write_text("red GREEN blue WHITE black GOLD: " * 30)
    data = {"name": "text", "path": str(folder / "text.txt")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODULAR_GPT_CACHE", str(folder / "cache"))
        first = RunConfig(model=MODEL, data=data, trainer={**FIXED, "max_steps": 20, "eval_interval": 20}, name="first")
        first.runs = str(folder / "runs")
        (folder / "first").symlink_to(train(first, quiet=True).directory)
    return folder


def config(start: Path, runs: Path, **others: Any) -> RunConfig:
    trainer = {**FIXED, "objective": "dpo", "max_steps": 12, "eval_interval": 4, "log_interval": 1, "batch_size": 8}
    return RunConfig(
        model=MODEL,
        data={"name": "preferences", "path": str(start / "pairs.jsonl")},
        trainer={**trainer, **others.pop("trainer", {})},
        optim={"name": "adamw", "learning_rate": 3e-3},
        init_from=str(start / "first"),
        runs=str(runs),
        **others,
    )


def naive(policy: Tensor, reference: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Reference: the loss as in TRL from logits (B, 2, T, V), token by token."""
    losses = []
    for policy_logits, reference_logits, wanted in zip(policy, reference, targets, strict=True):
        sums = []
        for logits in (policy_logits, reference_logits):
            for side in (0, 1):
                places = [t for t in range(wanted.shape[1]) if wanted[side, t] != IGNORED]
                scores = [logits[side, t, wanted[side, t]] - logits[side, t].exp().sum().log() for t in places]
                sums.append(torch.stack(scores).sum())
        chosen, rejected, chosen_before, rejected_before = sums
        ratio = (chosen - rejected) - (chosen_before - rejected_before)
        losses.append(-torch.log(1 / (1 + torch.exp(-beta * ratio))))
    return torch.stack(losses).mean()


def test_loss_and_gradient_equal_the_formula() -> None:
    torch.manual_seed(0)
    policy = torch.randn(3, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    targets = torch.randint(7, (3, 2, 5))
    targets[:, :, :2] = IGNORED
    targets[0, 1, 3:] = IGNORED
    sums = [row_logprobs(logits.flatten(0, 1), targets.flatten(0, 1)).view(3, 2) for logits in (policy, reference)]
    losses, margins = dpo_losses(*sums, beta=0.3)
    expected = naive(policy, reference, targets, 0.3)
    assert torch.allclose(losses.mean(), expected.float(), atol=1e-6)
    got, wanted = (torch.autograd.grad(loss, policy)[0] for loss in (losses.mean(), expected))
    assert torch.allclose(got, wanted, atol=1e-7) and bool(got.abs().max() > 1e-3)
    assert torch.allclose(-torch.nn.functional.logsigmoid(margins), losses)


def test_the_loss_of_a_batch_equals_that_of_its_logits(start: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config(start, tmp_path))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    reference = trainer.objective.config.reference
    assert reference is not None and reference.model is not None
    ids, targets = trainer.batches.batch(3)
    output = trainer.objective.train((ids, targets))
    policy = trainer.model(ids.flatten(0, 1)).view(*ids.shape, -1)
    expected = naive(policy, reference.model(ids.flatten(0, 1)).view(*ids.shape, -1), targets, 0.1)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())


def test_every_objective_has_a_setting() -> None:
    assert tuple(OBJECTIVES) == NAMES and ObjectiveConfig(LossConfig(), 0.1).reference is None


def dpo_run(start: Path, runs: Path, **others: Any) -> list[dict[str, float]]:
    return read_metrics(train(config(start, runs, **others), quiet=True).directory)


def test_it_starts_at_log_2_and_learns_the_preference(start: Path, tmp_path: Path) -> None:
    entries = dpo_run(start, tmp_path, trainer={"max_steps": 40, "eval_interval": 20})
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    evaluated = [entry for entry in entries if "validation_loss" in entry]
    assert evaluated[-1]["validation_accuracy"] == 1.0 and evaluated[-1]["validation_loss"] < 0.4
    assert "bits_per_byte" not in evaluated[-1] and entries[-2]["reward_margin"] > 0.5


def test_the_loss_does_not_depend_on_micro_batches(start: Path, tmp_path: Path) -> None:
    one, four = (dpo_run(start, tmp_path / str(n), trainer={"gradient_accumulation": n}) for n in (1, 4))
    for before, after in zip(one, four, strict=True):
        assert all(after[name] == pytest.approx(before[name], abs=2e-5) for name in before if "loss" in name)


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "lora"])
def test_a_resumed_run_ends_bitwise_equal(
    rank: int | None, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rank is not None:
        pytest.importorskip("peft", reason="needs the extra peft")
    lora = {"rank": rank}
    whole = train(config(start, tmp_path / "whole", lora=lora), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        stopped = train(config(start, tmp_path, lora=lora), quiet=True)
    train(config(start, tmp_path, lora=lora, resume=str(stopped.directory)), quiet=True)
    got, wanted = ending(stopped.directory)[0], ending(whole.directory)[0]
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in got)
    losses = [
        [entry[name] for entry in read_metrics(run.directory) for name in ("loss", "validation_loss") if name in entry]
        for run in (stopped, whole)
    ]
    assert losses[0] == losses[1] and losses[0][0] == pytest.approx(math.log(2), abs=1e-5)


def test_disabled_adapters_give_the_source_model(start: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra peft")
    trainer = trainer_of(config(start, tmp_path, lora={"rank": 2}))
    adapters, ids = trainer.adapters, torch.arange(20)[None]
    assert adapters is not None
    model = trainer.model.eval()
    with torch.no_grad():
        before = model(ids)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        adapted = model(ids)
        assert not torch.allclose(before, adapted)
        with adapters.switched_off():
            assert torch.equal(model(ids), before)
        with adapters.merged():
            merged = model(ids)
            with adapters.switched_off():
                assert torch.equal(model(ids), before)
            assert torch.equal(model(ids), merged)
        assert torch.equal(model(ids), adapted)


def test_a_resume_refuses_another_reference(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        stopped = train(config(start, tmp_path), quiet=True)
    with pytest.raises(CheckpointError, match=r"was trained with trainer\.beta=0\.1"):
        train(config(start, tmp_path, resume=str(stopped.directory), trainer={"beta": 0.2}), quiet=True)
    link = start / "first"
    target = link.resolve()
    link.unlink()
    link.symlink_to(stopped.directory)
    try:
        with pytest.raises(CheckpointError, match="was trained with weights of init_from="):
            train(config(start, tmp_path, resume=str(stopped.directory)), quiet=True)
    finally:
        link.unlink()
        link.symlink_to(target)


def test_long_prompts_are_truncated_on_the_left_and_long_answers_on_the_right() -> None:
    pair = Pair([9, *range(10, 20)], [1, 2, 3], [4] * 20)
    data = PreparedPairs([pair], [pair], {}, bos_id=9)
    x, y = next(data.evaluation(8, 2, 0))
    assert x.shape == y.shape == (2, 2, 8)
    assert x[0, 0].tolist() == [9, 15, 16, 17, 18, 19, 1, 2]
    assert y[0, 0].tolist() == [IGNORED] * 5 + [1, 2, 3]
    assert x[0, 1].tolist() == [9, 17, 18, 19, 4, 4, 4, 4]  # half of the row is for the prompt, as for other records
    assert y[0, 1].tolist() == [IGNORED] * 3 + [4] * 5
    assert bool((y[1] == IGNORED).all())


def test_each_epoch_has_every_pair_once(start: Path) -> None:
    corpus = build_corpus({"name": "preferences", "path": str(start / "pairs.jsonl")})
    data = corpus.prepare(build_tokenizer("byte"))
    count = data.rows_per_epoch(24)
    assert count is not None
    batches = [data.batches(24, 1, 5, "random").batch(step)[0].tolist() for step in range(2 * count)]
    first, second = batches[:count], batches[count:]
    assert sorted(first) == sorted(second) and first != second and len({str(row) for row in first}) == count
    shares = [data.batches(24, 6, 5, "random").batch(2, rank, 3)[0] for rank in range(3)]
    assert torch.equal(torch.cat(shares), data.batches(24, 6, 5, "random").batch(2)[0])


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 1: there is no field 'rejected', found prompt, chosen: correct"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "line 1, field 'prompt': it must be text, found the number 3"),
        ({"prompt": "", "chosen": "", "rejected": "c"}, "line 1, field 'chosen': it"),
        ({"prompt": "\ud800", "chosen": "b", "rejected": "c"}, "line 1, field 'prompt': U+D800 at position 0"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 1: both answers are the same"),
    ],
)
def test_bad_pairs(row: dict[str, object], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError) as caught:
        build_corpus({"name": "preferences", "path": str(tmp_path / "pairs.jsonl")})
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_names_of_fields_are_validated_like_those_of_records(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"question": "a", "chosen": "b", "rejected": "c"}))
    for fields, sentence in (
        ({"promt": "question"}, "data.fields: no field 'promt'; did you mean 'prompt'?"),
        ({"completion": "answer"}, "data.fields: no field 'completion'; there are: chosen, prompt, rejected"),
        ({"prompt": 5}, "data.fields.prompt must be the name of a field in the files, got 5"),
        ({"prompt": "q"}, "line 1: there is no field 'q', which data.fields names; it has question, chosen, rejected"),
    ):
        with pytest.raises((ConfigError, DataError)) as caught:
            build_corpus({"name": "preferences", "path": str(tmp_path / "pairs.jsonl"), "fields": fields})
        assert sentence in str(caught.value)


def test_incompatible_settings_are_refused(start: Path, tmp_path: Path) -> None:
    wrong = config(start, tmp_path)
    wrong.init_from = None
    with pytest.raises(ConfigError, match=r"trainer\.objective=dpo compares with the model .* give init_from="):
        train(wrong, quiet=True)
    with pytest.raises(ConfigError, match=r"data=preferences is for trainer\.objective=dpo, not cross_entropy"):
        train(config(start, tmp_path, trainer={"objective": "cross_entropy"}), quiet=True)
    text = config(start, tmp_path)
    text.data = RunConfig(data={"name": "text", "path": str(start / "text.txt")}).data
    with pytest.raises(ConfigError, match=r"trainer\.objective=dpo needs data=preferences"):
        train(text, quiet=True)
    with pytest.raises(ConfigError, match=r"trainer\.objective: no choice 'dop'; did you mean 'dpo'"):
        config(start, tmp_path, trainer={"objective": "dop"})
