"""Training on records: losses equal those of a published model, packing does not change them, exact resumes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from modular_gpt import GPTModel, generate
from modular_gpt.checkpoint import build_model, find_checkpoint
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import Batch, Tokenizer, build_corpus, build_tokenizer
from modular_gpt.data.records.prepared import PreparedRecords
from modular_gpt.nn.attention.linear import LinearAttention
from modular_gpt.training import RunConfig, TrainerConfig, load_config
from modular_gpt.training.report import report_table
from tests.training.small import assert_same_ending, config, run, stop_after, trainer_of

SUMS = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(10) for b in range(10)]
TALKS = [
    {
        "messages": [
            {"role": "user", "content": f"{a}?"},
            {"role": "assistant", "content": f"{a}!"},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": f"{a}, again"},
        ]
    }
    for a in range(40)
]
BLOCK = 64


def records(folder: Path, rows: list[dict[str, Any]] | None = None, **settings: Any) -> dict[str, Any]:
    """Write a file of rows; returns its settings of ``data``."""
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (SUMS if rows is None else rows)))
    return {"name": "records", "path": str(path), **settings}


def training(folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    """Config of a run on records in rows of 32 tokens."""
    data = settings.pop("data", None) or records(folder)
    return config(folder, {"context_length": 32, "n_layers": 1, **(model or {})}, data=data, **settings)


def batch_of(folder: Path, rows: list[dict[str, Any]], size: int, **settings: Any) -> Batch:
    """The first batch of some records in rows of ``BLOCK`` bytes."""
    corpus = build_corpus(records(folder, rows, **settings))
    return corpus.prepare(build_tokenizer("byte", corpus)).batches(BLOCK, size, 0, "random").batch(0)


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class TestAgainstTransformers:
    """transformers' loss of the same ids and labels is the reference."""

    SHAPES = {  # noqa: RUF012  a table of the class
        "gpt2": transformers.GPT2Config(
            vocab_size=256, n_positions=BLOCK + 1, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.0, attn_pdrop=0.0,
            resid_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        ),
        "llama": transformers.LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=BLOCK + 1, bos_token_id=None, eos_token_id=None,
        ),
    }  # fmt: skip

    @pytest.mark.parametrize("rows", [SUMS, TALKS], ids=["sums", "talks"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_loss_and_gradients(self, shape: str, rows: list[dict[str, Any]], folder: Path) -> None:
        torch.manual_seed(0)
        reference = transformers.AutoModelForCausalLM.from_config(self.SHAPES[shape], attn_implementation="eager")
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        reference.save_pretrained(folder / "model")
        loaded = GPTModel.from_pretrained(str(folder / "model")).train()
        x, y = batch_of(folder, rows, 6, packing=False)
        assert 0 < int((y != IGNORED).sum()) < int((x != 0).sum())
        ids = torch.cat([x, y[:, -1:].clamp(min=0)], dim=1)
        labels = torch.cat([torch.full_like(y[:, :1], IGNORED), y], dim=1)
        expected = reference(input_ids=ids, labels=labels).loss
        found = loaded(x, y).loss
        assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=2e-5)
        # Saving the gradients of transformers as weights and loading them maps them to the names of this package.
        reference_gradients = gradients(reference, expected)
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                parameter.copy_(reference_gradients[name])
        reference.save_pretrained(folder / "gradients")
        mapped = dict(GPTModel.from_pretrained(str(folder / "gradients")).named_parameters())
        for name, gradient in gradients(loaded, found).items():
            assert torch.allclose(gradient, mapped[name], atol=2e-5), name


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "linear", "gated_delta"])
def test_packed_equals_unpacked(attention: str, folder: Path) -> None:
    """Sums of losses and gradients over all records are equal in float32."""
    torch.manual_seed(0)
    model = GPTModel(vocab_size=256, d_model=32, n_heads=2, n_layers=2, context_length=BLOCK, attention=attention)
    sums = {}
    for packing in (True, False):
        source = build_corpus(records(folder, SUMS, packing=packing))
        data = source.prepare(build_tokenizer("byte", source))
        assert isinstance(data, PreparedRecords)
        x, y, *documents = data.batches(BLOCK, data.rows_per_epoch(BLOCK), 0, "random").batch(0)
        count = int((y != IGNORED).sum())
        loss = model(x, y, documents=documents[0] if packing else None).loss * count
        sums[packing] = count, float(loss.detach()), gradients(model, loss)
    assert sums[True][0] == sums[False][0]
    assert sums[True][1] == pytest.approx(sums[False][1], rel=1e-6)
    for name, gradient in sums[False][2].items():
        assert torch.allclose(sums[True][2][name], gradient, rtol=1e-4, atol=2e-5 * float(gradient.abs().max())), name


@pytest.mark.parametrize(
    "settings",
    [{}, {"data": {"packing": False}, "gradient_accumulation": 2}, {"lora": {"rank": 2, "dropout": 0.2}}],
    ids=["packed", "a record a row", "adapters"],
)
@pytest.mark.usefixtures("fast")
def test_a_run_of_epochs_resumes_bitwise(
    settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "lora" in settings:
        pytest.importorskip("peft", reason="the extra `peft` is not installed")
        settings = {**settings, "init_from": str(run(training(folder, max_steps=2, sample_tokens=0)).directory)}
    settings = {**settings, "data": records(folder, **settings.get("data", {}))}
    length = {"max_steps": TrainerConfig.max_steps, "epochs": 0.5 if "gradient_accumulation" in settings else 2.0}
    whole = run(training(folder, **settings, **length)).directory
    steps = load_config(whole).trainer.max_steps
    assert 8 < steps < 24 and load_config(whole).trainer.epochs is None
    with monkeypatch.context() as patch:
        stop_after(patch, steps // 2)
        stopped = run(training(folder, **settings, **length)).directory
    assert_same_ending(whole, run(load_config(stopped)).directory)


@pytest.mark.usefixtures("fast")
def test_the_report_has_loss_and_accuracy_of_the_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal to the formula over all validation records."""
    settings = training(folder, final_evaluation=True)
    result = run(settings)
    outcome = result.outcome
    assert outcome is not None and outcome.accuracy is not None and outcome.whole
    model, trainer = build_model(find_checkpoint(result.directory)).eval(), trainer_of(settings)
    total, hits, count = 0.0, 0, 0
    with torch.no_grad():
        for x, y, documents in trainer.data.evaluation(32, 4, 0):
            logits = model(x, documents=documents)
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"))
            hits += int((logits.argmax(-1) == y).sum())
            count += int((y != IGNORED).sum())
    assert outcome.loss == pytest.approx(total / count, abs=1e-5)
    assert outcome.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert outcome.accuracy == pytest.approx(hits / count, abs=1e-6)
    table = report_table(outcome, trainer.data, result.directory)
    assert "on all validation records" in table and "bits per byte" not in table
    assert outcome.epochs == pytest.approx(12 * 4 / trainer.data.rows_per_epoch(32))


@pytest.mark.usefixtures("fast")
def test_the_first_lines_describe_the_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from modular_gpt.training import train

    rows = [*SUMS, {"prompt": "9" * 40, "completion": "x"}, {"prompt": "x"}]
    train(training(folder, data=records(folder, rows, skip_bad=True, val_fraction=0.05), max_steps=1))
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Data"))
    assert " prompts and answers, " in lines[at] and "% of them count; " in lines[at]
    assert " rows, " in lines[at + 1] and "of their places filled" in lines[at + 1]
    assert lines[at + 2].strip() == "1 record is longer than the context: the beginning of the prompt is cut off"
    assert "1 bad record is left out; the first: '" in lines[at + 3] and "line 102" in lines[at + 3]


def test_an_attention_that_mixes_records_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinearAttention, "separates_documents", False)
    with pytest.raises(ConfigError, match=r"attention=linear cannot keep packed .* apart; set data.packing=false"):
        trainer_of(training(folder, {"attention": "linear"}))
    trainer_of(training(folder, {"attention": "linear"}, data=records(folder, packing=False)))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("template", [None, "chatml"])
def test_the_template_of_conversations_is_saved_with_the_model(template: str | None, folder: Path) -> None:
    result = run(training(folder, {"context_length": 128}, data=records(folder, TALKS, template=template)))
    saved = Tokenizer.load(find_checkpoint(result.directory)).template
    assert saved is not None and saved.name == (template or "plain")


@pytest.mark.usefixtures("fast")
def test_answers_are_learned_and_found_by_generation(folder: Path) -> None:
    """Ten memorised records; generation from a prompt gives the answer and its end token."""
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a, b in ((1, 2), (3, 5), (9, 9), (8, 4))]
    validation = folder / "validation.jsonl"
    validation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = records(folder, rows, validation=str(validation))
    settings = training(
        folder,
        {"d_model": 32},
        data=data,
        max_steps=150,
        eval_interval=150,
        sample_tokens=12,
        optim={"name": "adamw", "learning_rate": 1e-2},
    )
    result = run(settings)
    assert result.outcome is not None and result.outcome.accuracy == 1.0
    assert (result.directory / "samples.txt").read_text().rstrip().endswith("| 1 + 2 = 3")
    model = build_model(find_checkpoint(result.directory)).eval()
    tokenizer = build_tokenizer("byte")
    for row in rows:
        prompt = torch.tensor([tokenizer.prompt_ids(row["prompt"])])
        out = generate(model, prompt, 6, greedy=True)
        answer = tokenizer.decode(out[0, prompt.shape[1] :])
        assert answer.startswith(f"{row['completion']}\n\n")
