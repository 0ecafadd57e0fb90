"""``fit``: the training loop of ``mgpt-train`` on objects in memory."""

import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import modular_gpt
from modular_gpt import GPTModel, History, fit, load_model
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError
from modular_gpt.data import CharTokenizer, SlidingWindowDataset, build_corpus, build_tokenizer
from modular_gpt.data.dataset_rows import read_batch, read_row
from modular_gpt.training import metrics
from modular_gpt.training.fit_data import read_data
from modular_gpt.training.trainer import Trainer
from tests.training.small import MODEL, TRAINER, ending, run, stop_after, write_text
from tests.training.small import one_layer as config

SETTINGS = {name: value for name, value in TRAINER.items() if name not in ("final_evaluation", "sample_tokens")}
UNEVALUATED = {name: value for name, value in SETTINGS.items() if not name.startswith("eval_")}
TEXT = "the cat sat on a mat; it was the cat.\n" * 40
QUIET: dict[str, Any] = {**UNEVALUATED, "quiet": True}


def model_of(seed: int = 0, **settings: Any) -> GPTModel:
    torch.manual_seed(seed)
    return GPTModel(**{**MODEL, "n_layers": 1, "vocab_size": 256, **settings})


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": "epoch", "gradient_accumulation": 2, "seed": 3},
        {"ema_decay": 0.9, "label_smoothing": 0.1, "schedule": "wsd"},
        {"optim": {"name": "muon", "learning_rate": 0.01}},
        {"frozen": ["embedding*"], "max_steps": 1600, "max_tokens": 800},
        {"model": {"dropout": 0.1, "ffn": "moe"}, "seed": 1},
    ],
)
def test_it_equals_mgpt_train_bitwise(folder: Path, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    described = settings.pop("model", {})
    result = run(config(folder, described, **settings))
    model = model_of(settings.get("seed", 0), **described)
    text = (folder / "text.txt").read_text()
    history = fit(model, text, "byte", validation=0.1, quiet=True, **{**SETTINGS, **settings})
    expected, _, metrics = ending(result.directory)
    assert_equal({name: t for name, t in expected.items() if name.startswith("model:")},
                 {f"model:{name}": t for name, t in weights(model).items()})  # fmt: skip
    assert history.validation_loss == [entry["validation_loss"] for entry in metrics if "validation_loss" in entry]
    assert history.train_loss == [entry["loss"] for entry in metrics if "loss" in entry]


def test_training_a_model_of_a_run_equals_init_from_bitwise(folder: Path) -> None:
    first = run(config(folder)).directory
    second = run(config(folder, init_from=str(first)))
    model = load_model(first).model
    fit(model, (folder / "text.txt").read_text(), validation=0.1, quiet=True, **SETTINGS)
    expected = {name.removeprefix("model:"): tensor for name, tensor in ending(second.directory)[0].items()}
    assert_equal({name: expected[name] for name in weights(model)}, weights(model))


def test_it_equals_a_loop_in_pytorch() -> None:
    """A loop in plain PyTorch on the same batches gives the same weights."""
    model, twin = model_of(), model_of()
    x, y = torch.randint(256, (2, 24, 16), generator=torch.Generator().manual_seed(1)).unbind()
    loader: Any = DataLoader(TensorDataset(x, y), batch_size=4)
    fit(
        model, loader, epochs=2, optim="adamw", learning_rate=1e-2, weight_decay=0.0, schedule="constant", warmup=0,
        gradient_clip=0.0, quiet=True, precision="float32", device="cpu",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for _ in range(2):
        for ids, targets in loader:
            logits, _ = twin(ids, targets)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


class Squares(Dataset[Any]):
    """A dataset whose rows are functions of their index."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = (torch.arange(9) + index) ** 2 % 256
        return row[:-1], row[1:]


class Counted(IterableDataset[Any]):
    """An iterable dataset without a length."""

    def __iter__(self) -> Any:
        return iter([Squares()[index] for index in range(13)])


def loader_of(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Squares(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5), **settings)


FORMS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "text": (lambda: TEXT, {"validation": 0.1, "tokenizer": "byte"}),
    "texts": (lambda: [TEXT, TEXT[:99]], {"validation": TEXT[5:300], "tokenizer": "byte"}),
    "average": (lambda: TEXT, {"validation": 0.1, "tokenizer": "byte", "ema_decay": 0.8}),
    "ids": (lambda: list(TEXT.encode()), {"validation": 0.2}),
    "dataset": (Squares, {"validation": 0.2}),
    "loader": (loader_of, {"batch_size": None, "validation": loader_of()}),
    "global_shuffle": (lambda: DataLoader(Squares(), 4, shuffle=True, drop_last=True), {"batch_size": None}),
    "no_length": (lambda: DataLoader(Counted(), 4), {"batch_size": None}),
    "records": (lambda: [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(9)], {"tokenizer": "byte"}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("fast")
def test_a_resumed_training_equals_an_uninterrupted_one_bitwise(
    folder: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, given = FORMS[form]
    settings = {**(SETTINGS if "validation" in given else UNEVALUATED), **given, "quiet": True, "dropout": None}
    settings = {name: value for name, value in settings.items() if value is not None}
    model = model_of(dropout=0.1)
    history = fit(model, make(), checkpoint=folder / "whole", **settings)
    stopped = model_of(dropout=0.1)
    for steps in (5, 7):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            assert fit(stopped, make(), checkpoint=folder / "parts", **settings).interrupted
        stopped = model_of(seed=9, dropout=0.1)  # as in another process with a new model
    again = fit(stopped, make(), checkpoint=folder / "parts", **settings)
    assert not again.interrupted and again.train_loss == history.train_loss
    assert_equal(weights(model), weights(stopped))
    tensors, progress, metrics = ending(folder / "whole")
    tensors_, progress_, metrics_ = ending(folder / "parts")
    assert_equal(tensors, tensors_)
    assert (progress, metrics) == (progress_, metrics_)
    assert (
        fit(stopped, make(), checkpoint=folder / "parts", **settings).to_dict() == again.to_dict()
    )  # training is complete


def test_a_checkpoint_is_opened_by_load_model(folder: Path) -> None:
    model = model_of()
    fit(model, TEXT, "byte", checkpoint=folder / "fox", **QUIET)
    loaded = load_model(folder / "fox")
    assert_equal(weights(model), weights(loaded.model))
    assert loaded.tokenizer is not None and loaded.tokenizer.name == "byte"
    assert loaded.model.generate("the ", 8, seed=0) == model.generate("the ", 8, seed=0)
    with pytest.raises(CheckpointError, match=r"trained by modular_gpt\.fit on data"):
        modular_gpt.training.load_config(folder / "fox")
    assert run(config(folder, init_from=str(folder / "fox"))).outcome is not None


def test_more_steps_continue_and_fewer_are_refused(folder: Path) -> None:
    settings = {**QUIET, "checkpoint": folder / "fox"}
    fit(model_of(), TEXT, "byte", **settings)
    assert fit(model_of(), TEXT, "byte", **{**settings, "max_steps": 15}).steps[-1] == 15
    with pytest.raises(ConfigError, match="has done 15 steps, and this training has 12"):
        fit(model_of(), TEXT, "byte", **settings)


def test_a_checkpoint_of_something_else_changes_nothing(folder: Path) -> None:
    settings = {**QUIET, "checkpoint": folder / "fox"}
    fit(model_of(), TEXT, "byte", **settings)
    for other, text, error in (
        (model_of(7), TEXT + ".", "the corpus is not the one"),
        (model_of(7, d_model=32), TEXT, "of a model with d_model=16"),
        (model_of(7, dropout=0.3), TEXT, "of a model with dropout=0.0"),
    ):
        before = weights(other)
        with pytest.raises((CheckpointError, DataError), match=error):
            fit(other, text, "byte", **settings)
        assert_equal(before, weights(other))
    with pytest.raises(CheckpointError, match="is one checkpoint"):
        fit(model_of(), TEXT, "byte", **{**settings, "checkpoint": folder / "fox" / "checkpoints" / "step_00000012"})


def test_ctrl_c_keeps_the_trained_weights(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    update = Trainer.update

    def interrupted(self: Trainer) -> None:
        update(self)
        if self.progress.step == 4:
            signal.raise_signal(signal.SIGINT)

    expected, model = model_of(), model_of()
    fit(expected, TEXT, "byte", **{**QUIET, "max_steps": 5, "schedule": "constant", "warmup": 0})
    monkeypatch.setattr(Trainer, "update", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    history = fit(model, TEXT, "byte", **{**QUIET, "schedule": "constant", "warmup": 0})
    assert history.interrupted and "stopped early" in repr(history)
    assert_equal(weights(expected), weights(model))
    assert signal.getsignal(signal.SIGINT) is handler
    assert "this step is finished, and the model keeps it; Ctrl-C again ends at once" in capfd.readouterr().err


def test_the_state_of_the_model_after_training() -> None:
    model = model_of()
    model.embedding.weight.requires_grad_(False)
    before, state = weights(model), torch.get_rng_state()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fit(model, TEXT, "byte", frozen=["final_norm*"], **QUIET)
    assert torch.equal(torch.rand(3), expected)
    assert not model.training and model.tokenizer is not None and model.tokenizer.vocab_size == 256
    assert not model.embedding.weight.requires_grad and all(p.requires_grad for p in model.final_norm.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    changed = [name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])]
    assert changed and not any(name.startswith(("embedding", "final_norm")) for name in changed)
    torch.set_rng_state(state)


class Doubling(nn.Module):
    """A user-defined feed-forward network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def test_a_model_that_was_changed_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def changed() -> GPTModel:
        model = model_of(tie_embeddings=False, n_layers=2)
        torch.manual_seed(1)
        model.blocks[1].ffn = Doubling(16)
        model.head = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 256))  # type: ignore[assignment]
        return model

    model, again = changed(), changed()
    before = weights(model)
    settings = {**UNEVALUATED, "checkpoint": folder / "hand"}
    history = fit(model, TEXT, "byte", **settings)
    assert history.train_loss[-1] < history.train_loss[0]
    assert not torch.equal(before["blocks.1.ffn.inner.weight"], model.state_dict()["blocks.1.ffn.inner.weight"])
    assert not torch.equal(before["head.1.weight"], model.state_dict()["head.1.weight"])
    assert "does not describe blocks.1.ffn, head" in capsys.readouterr().out
    fit(again, TEXT, "byte", **settings)
    assert_equal(weights(model), weights(again))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn"):
        load_model(folder / "hand")


def test_tokens_of_any_type_give_equal_weights() -> None:
    ids = list(TEXT.encode())
    expected = model_of()
    fit(expected, TEXT, "byte", **QUIET)
    for same in (ids, tuple(ids), np.array(ids, dtype=np.uint8), torch.tensor(ids)):
        model = model_of()
        fit(model, same, **QUIET)
        assert_equal(weights(expected), weights(model))
        assert model.tokenizer is None


def test_a_path_is_read_and_a_file_name_is_refused_as_text(folder: Path) -> None:
    path = write_text(folder / "fox.txt")
    data = read_data(path, None, "byte", None).data
    assert data.sizes().startswith(f"{path.stat().st_size:,} tokens")
    with pytest.raises(ConfigError, match="is the path of a file, not a text: give Path"):
        fit(model_of(), str(path), "byte")


def test_a_corpus_and_prepared_data_are_accepted(folder: Path) -> None:
    corpus = build_corpus({"name": "text", "path": str(write_text(folder / "fox.txt"))})
    one, other = model_of(), model_of()
    history = fit(one, corpus, "byte", quiet=True, **SETTINGS)
    fit(other, corpus.prepare(build_tokenizer("byte")), quiet=True, **SETTINGS)
    assert_equal(weights(one), weights(other))
    assert len(history.validation_loss) == 3


def test_an_epoch_reads_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    update = Trainer.update

    def noted(self: Trainer) -> None:
        seen.extend(self.batches.batch(self.progress.step)[0][:, 0].tolist())
        update(self)

    monkeypatch.setattr(Trainer, "update", noted)
    rows = [[n, n + 1, n + 2] for n in range(12)]
    for data, epochs in ((rows, 2), (DataLoader(rows, 4, shuffle=True, collate_fn=torch.tensor), 2)):  # type: ignore[arg-type, arg-type]
        seen.clear()
        given = {} if isinstance(data, DataLoader) else {"batch_size": 4}
        fit(model_of(), data, epochs=epochs, quiet=True, device="cpu", **given)
        assert sorted(seen) == sorted([*range(12), *range(12)])
        assert seen[:12] != seen[12:] and sorted(seen[:12]) == list(range(12))
    seen.clear()
    fit(model_of(), list(range(16 * 12 + 1)), epochs=1, batch_size=4, quiet=True, device="cpu")
    assert sorted(seen) == list(range(0, 16 * 12, 16))


ROWS = [
    (([1, 2, 3], [2, 3, 4]), [1, 2, 3], [2, 3, 4]),
    (torch.tensor([1, 2, 3, 4]), [1, 2, 3], [2, 3, 4]),
    ((torch.tensor([1, 2, 3, 4]),), [1, 2, 3], [2, 3, 4]),
    (np.array([1, 2, 3, 4]), [1, 2, 3], [2, 3, 4]),
    ({"input_ids": [1, 2, 3, 4]}, [1, 2, 3], [2, 3, 4]),
    ({"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}, [1, 2, 3], [-100, 3, 4]),
    ({"input_ids": [1, 2, 0, 0], "attention_mask": [1, 1, 0, 0], "idx": 3}, [1], [2]),
    ({"input_ids": [0, 7, 8, 9], "labels": [5, 7, 8, 9], "attention_mask": [0, 1, 1, 1]}, [7, 8], [8, 9]),
]


@pytest.mark.parametrize(("item", "ids", "targets"), ROWS)
def test_forms_of_a_row(item: Any, ids: list[int], targets: list[int]) -> None:
    assert [tensor.tolist() for tensor in read_row(item, "a row")] == [ids, targets]


def test_labels_have_the_semantics_of_transformers() -> None:
    """The loss equals that of a transformers model on the same dict."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=31, n_embd=16, n_head=2, n_layer=1))
    batch = {"input_ids": torch.randint(31, (2, 9)), "labels": torch.randint(31, (2, 9))}
    batch["labels"][0, :5] = -100
    with torch.no_grad():
        logits = reference.eval()(input_ids=batch["input_ids"]).logits
        expected = reference(**batch).loss
    rows = read_batch(batch)
    valid = torch.cat([logits[index, : len(ids)] for index, (ids, _) in enumerate(rows)])
    targets = torch.cat([target for _, target in rows])
    torch.testing.assert_close(torch.nn.functional.cross_entropy(valid, targets), expected)


def test_rows_of_different_lengths_are_padded_without_effect() -> None:
    """Gradients equal those of single rows, independent of the other rows of the batch."""
    rows = [[1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11]]
    model = model_of()
    history = fit(model, rows, max_steps=1, batch_size=3, quiet=True, device="cpu", precision="float32")
    with torch.no_grad():
        twin = model_of()
        losses = [twin(torch.tensor([row[:-1]]), torch.tensor([row[1:]])).loss * (len(row) - 1) for row in rows]
    assert history.train_loss[0] == pytest.approx(float(torch.stack(losses).sum() / 8), abs=1e-6)


def test_accumulation_of_a_loader_whose_last_batch_is_short() -> None:
    whole, divided = model_of(), model_of()
    for model, count in ((whole, 1), (divided, 4)):
        loader: Any = DataLoader(Squares(), batch_size=8)  # 30 rows: the last batch has 6
        fit(model, loader, epochs=1, gradient_accumulation=count, quiet=True, device="cpu", precision="float32")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(divided.state_dict()[name], tensor, rtol=2e-3, atol=2e-5, msg=name)


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": nn.Linear(2, 2)}, ConfigError, r"got a Linear; train other modules by PyTorch's loop"),
    ({"model": SimpleNamespace(model=model_of())}, ConfigError, "give the GPTModel in it, .model"),
    ({"model": "gpt2"}, ConfigError, r"got a str: GPTModel\(...\) or load_model"),
    ({"model": model_of().bfloat16()}, ConfigError, r"torch.bfloat16, and training keeps them in float32: model.float"),
    ({"model": model_of().requires_grad_(False)}, ConfigError, "no parameter of the model requires a gradient"),
    ({"tokenizer": None}, ConfigError, "a text needs a tokenizer: give tokenizer='byte'"),
    ({"tokenizer": 3}, ConfigError, "tokenizer must be a Tokenizer or a name such as 'byte', got a int"),
    ({"data": 3}, ConfigError, "data must be a text, a list of texts, .* got a int"),
    ({"data": ""}, DataError, "the train text is empty"),
    ({"data": ["a", 3]}, DataError, "the train data must be texts, got a int: 3"),
    ({"data": "short"}, DataError, "has 5 tokens, but a context_length of 16 needs 17"),
    ({"data": [1.5, 2.5]}, DataError, "item 0"),
    ({"data": [300] * 99, "tokenizer": None}, DataError, "id 300, .* give the model vocab_size=301"),
    ({"data": [-1] * 99}, DataError, "token ids are 0 or more, got -1"),
    ({"data": [[300] * 9] * 9}, ConfigError, "ids contain 300, but the model's ids run from 0 to 255"),
    ({"data": [list(range(20))] * 9}, DataError, "a row has 19 tokens, but the model's context_length is 16"),
    ({"data": [{"question": 1}]}, DataError, "^record 1[,:].*question"),
    ({"data": [{"input_ids": [1, 2], "labels": [1]}]}, DataError, "2 input_ids and 1 labels"),
    ({"data": [(torch.ones(2), torch.ones(2))]}, DataError, r"torch.float32 of shape \(2,\): a row is"),
    ({"data": Counted()}, ConfigError, r"a Counted has no length: give DataLoader\(dataset, batch_size="),
    ({"data": DataLoader(Counted(), 4), "max_steps": None}, ConfigError, "has no epochs: give trainer.max_steps"),
    ({"data": loader_of(), "batch_size": 8}, ConfigError, "batch_size=8: the DataLoader makes batches of 4"),
    ({"data": loader_of(), "validation": 0.1}, ConfigError, "cannot be divided: give a second one"),
    ({"validation": 2}, ConfigError, "validation=2 must lie between 0 and 1"),
    ({"validation": True}, ConfigError, "validation=True is no data"),
    ({"validation": 0.00001}, DataError, "has 1 token, and a context_length of 16 needs 17"),
    ({"epochs": 1}, ConfigError, "epochs=1 and max_steps=12 both set the length"),
    ({"epochs": -1, "max_steps": None}, ConfigError, "epochs must be"),
    ({"patience": 3}, ConfigError, "patience=3 has no effect without validation"),
    ({"keep": 3}, ConfigError, "keep=3 has no effect without checkpoint"),
    ({"final_evaluation": True}, ConfigError, "no setting 'final_evaluation'"),
    ({"learning_rat": 1}, ConfigError, "no setting 'learning_rat'; did you mean 'learning_rate'?"),
    ({"lr": 1e-3, "learning_rate": 1e-3}, ConfigError, "set the same: give one of them"),
    ({"max_iters": 3}, ConfigError, "set the same: give one of them"),
    ({"min_lr": 1e-5}, ConfigError, "min_lr is not converted: set schedule.final instead"),
    ({"optim": "adam_"}, ConfigError, "no optim 'adam_'"),
    ({"data": Squares(), "order": "random"}, ConfigError, "order=random is for text"),
    ({"data": [1] * 99, "validation": 0.5, "sample_tokens": 5, "tokenizer": None}, ConfigError, "samples are text"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "message"), MISTAKES, ids=[str(n) for n in range(len(MISTAKES))])
def test_a_mistake_gets_one_sentence(given: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": model_of(), "data": TEXT, "tokenizer": "byte", **QUIET, **given}
    arguments = {name: value for name, value in arguments.items() if value is not None or name == "tokenizer"}
    with pytest.raises(error, match=message):
        fit(**arguments)


def test_names_of_other_programs() -> None:
    one, other = model_of(), model_of()
    fit(one, TEXT, "byte", **QUIET, learning_rate=1e-3, gradient_clip=0.5, weight_decay=0.2, warmup=3)
    settings = {name: value for name, value in QUIET.items() if name != "max_steps"}
    fit(other, TEXT, "byte", **settings, lr=1e-3, grad_clip=0.5, wd=0.2, warmup_steps=3, max_iters=12)
    assert_equal(weights(one), weights(other))


def test_a_history_has_metrics_a_plot_and_a_summary(folder: Path) -> None:
    history = fit(model_of(), TEXT, "byte", validation=0.2, quiet=True, **SETTINGS)
    assert history.steps == [3, 6, 9, 12] and history.validation_steps == [4, 8, 12]
    assert len(history.train_loss) == len(history.learning_rate) == 4
    assert history.best_step in history.validation_steps
    plain = json.loads(json.dumps(history.to_dict()))
    assert plain["validation_loss"] == history.validation_loss and not plain["interrupted"]
    assert f"validation loss {history.validation_loss[-1]:.4f}" in repr(history)
    assert f"<td>{history.validation_loss[0]:.4f}</td>" in history._repr_html_()
    figure: Any = history.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    losses = figure.axes[0]
    assert [list(line.get_ydata()) for line in losses.get_lines()] == [history.train_loss, history.validation_loss]
    empty = History()
    assert repr(empty) == "History(no step logged)" and empty.best_step is None and empty.plot() is not None
    assert math.isnan(History([metrics.Entry(step=1, learning_rate=0.1)]).train_loss[0])


def test_a_notebook_shows_one_curve_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    class Handle:
        def update(self, figure: Any) -> None:
            shown.append(figure)

    def display(figure: Any, display_id: bool) -> Handle:
        assert not shown and display_id
        shown.append(figure)
        return Handle()

    kernel = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))  # type: ignore[arg-type]
    monkeypatch.setattr("modular_gpt.training.notebook.PAUSE", 0)
    history = fit(model_of(), TEXT, "byte", validation=0.2, **SETTINGS)
    assert len(shown) == len(history.validation_loss) + 1
    assert [len(figure.axes[0].get_lines()[1].get_ydata()) for figure in shown] == [1, 2, 3, 3]


def test_lines_without_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    fit(model_of(), TEXT, "byte", validation=0.2, sample_tokens=4, sample_prompt="the", **SETTINGS)
    printed = capsys.readouterr().out
    assert "step      4/12  validation loss" in printed and "    | the" in printed
    fit(model_of(), TEXT, "byte", validation=0.2, quiet=True, **SETTINGS)
    assert capsys.readouterr().out == ""


def test_a_tokenizer_is_trained_on_both_texts() -> None:
    model = model_of(vocab_size=24)
    fit(model, "abcdefgh" * 20, "char", validation="ijkl" * 20, quiet=True, **SETTINGS)
    assert isinstance(model.tokenizer, CharTokenizer) and model.tokenizer.characters == "abcdefghijkl"


def test_records_equal_those_of_files(folder: Path) -> None:
    records = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(40)]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = run(config(folder, data={"name": "records", "path": str(path), "validation": str(path)}))
    model = model_of()
    history = fit(model, records, "byte", validation=records, quiet=True, **SETTINGS)
    expected = {name.removeprefix("model:"): tensor for name, tensor in ending(result.directory)[0].items()}
    assert_equal({name: expected[name] for name in weights(model)}, weights(model))
    assert history.validation_loss == result.history.validation_loss
    labels = [{"text": f"text {n}", "label": "even" if n % 2 == 0 else "odd"} for n in range(30)]
    assert len(fit(model_of(), labels, "byte", validation=0.3, quiet=True, **SETTINGS).validation_loss) == 3
    with pytest.raises(ConfigError, match="validation of records must be records or a fraction, got a str"):
        fit(model, records, "byte", validation="text", quiet=True)


def test_windows_of_the_package_are_a_dataset() -> None:
    history = fit(model_of(), SlidingWindowDataset(TEXT, build_tokenizer("byte"), 8), **QUIET)
    assert len(history.steps) == 4
