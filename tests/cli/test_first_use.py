"""Typical first attempts of users: they work, or one sentence helps."""

from pathlib import Path

import pytest
import torch

from modular_gpt import GPTModel, compose
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.cli import app
from modular_gpt.core.errors import ConfigError
from modular_gpt.data import CharTokenizer
from modular_gpt.nn.norm.rmsnorm import RMSNorm
from tests.cli.conftest import Run


@pytest.fixture
def model(folder: Path) -> None:
    """A checkpoint named ``model`` in the working directory."""
    tokenizer = CharTokenizer.build_vocab("abc ")
    small = GPTModel(vocab_size=tokenizer.vocab_size, d_model=16, n_heads=2, n_layers=1, context_length=16)
    save_checkpoint(folder / "model", small, tokenizer, meta={})


NUL_AND_LONG = [("a\0b", "cannot hold a NUL character"), ("a" * 5000, "at most 4095 bytes")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["logprobs=true"], "logprobs are printed with json=true only"),
        (["logit_bias={x: 100}"], "logit_bias={x: 100}: its keys must be whole numbers, its values numbers"),
        (["logit_bias={1: x}"], "logit_bias={1: x}: its keys must be whole numbers, its values numbers"),
        (["device=gpu"], "device=cuda cannot be used here"),
        (["device=tpu"], "error: device=tpu cannot be used here"),
        (["dtype=int8"], "dtype: no choice 'int8'"),
        (["temperature=warm"], "error: temperature must be a number, got 'warm'"),
        (["strategy=speculative", "draft=x"], "there is no checkpoint at 'x'"),
        *((["draft=" + name], sentence) for name, sentence in NUL_AND_LONG),
        *((["checkpoint=" + name], sentence) for name, sentence in NUL_AND_LONG),
    ],
)
@pytest.mark.usefixtures("model")
def test_mistakes_of_a_generation(run: Run, arguments: list[str], sentence: str) -> None:
    if arguments == ["device=gpu"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    answer = run("generate", "checkpoint=model", "prompt=ab", "max_new_tokens=2", *arguments)
    assert answer.code == 2 and sentence in answer.err and answer.err.count("\n") == 1


@pytest.mark.usefixtures("model")
def test_dtype_names_of_other_programs(run: Run) -> None:
    assert run("generate", "checkpoint=model", "prompt=ab", "max_new_tokens=2", "dtype=bfloat16").code == 0


def test_a_folder_of_runs_is_refused_with_a_list_of_its_runs(run: Run, folder: Path) -> None:
    (folder / "runs" / "20260101-mha" / "checkpoints").mkdir(parents=True)
    (folder / "runs" / "latest").symlink_to("20260101-mha")
    answer = run("generate", "checkpoint=runs", "prompt=ab")
    assert answer.code == 2 and "such as 'runs/latest' or 'runs/20260101-mha'" in answer.err


def test_a_sweep_refuses_resume(run: Run, folder: Path) -> None:
    answer = run("train", "--multirun", "resume=runs/latest", "seed=1,2")
    assert answer.code == 2 and "resume continues one run" in answer.err
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("attention=gqa latent_dim=8", "no setting 'latent_dim' (kv_lora_rank); use it with attention=mla"),
        ("attention=gqa attention.latent_dim=8", "no setting 'latent_dim' (kv_lora_rank); use it with attention=mla"),
        ("attention=gqa attention.kv_lora_rank=8", "no setting 'kv_lora_rank'; use it with attention=mla"),
        ("optim=sgd", "no optim 'sgd'; adamw is the usual choice for language models; there are: adafactor"),
        ("optim=Lion", "no optim 'Lion'; adamw is the usual choice"),
        ("epochs=-1", "trainer.epochs must be above 0, got -1.0"),
        ("runs=a\0b", "runs must be a path, which cannot hold a NUL character"),
    ],
)
def test_mistakes_of_a_training(setting: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose(*setting.split(" "))
    assert sentence in str(error.value)


def test_names_with_spaces() -> None:
    config = compose("attention=Multi Head Attention", "norm=Layer Norm")
    assert (config.model.attention.name, config.model.norm.name) == ("mha", "layernorm")
    assert compose("attention=Sliding-Window attention").model.attention.name == "swa"


def test_settings_in_a_list() -> None:
    assert compose(["attention=gqa", "seed=3"]) == compose("attention=gqa", "seed=3")
    for strange in ({"attention": "gqa"}, 3, None):
        with pytest.raises(ConfigError, match="compose takes settings as typed, such as 'attention=gqa'"):
            compose(strange)  # type: ignore[arg-type]


def test_the_name_of_a_run_is_cut_between_settings() -> None:
    settings = ["attention=gqa", "attention.n_kv_heads=2", "ffn=swiglu", "norm=rmsnorm", "optim=muon", "seed=3"]
    long = compose(*settings, "ffn.hidden=77", "schedule=constant", "model.tie_embeddings=false").name
    assert long == "gqa-n_kv_heads=2-swiglu-rmsnorm-muon-seed=3-hidden=77"


@pytest.mark.usefixtures("model")
def test_messages_of_mgpt_eval_call_the_files_of_a_corpus_path(run: Run) -> None:
    assert "corpus=text needs path=<file or pattern>" in run("eval", "checkpoint=model", "corpus=text").err
    missing = run("eval", "checkpoint=model", "corpus=text", "path=nofile").err
    assert "there is no file 'nofile'" in missing and "correct path" in missing and "data.path" not in missing


def test_no_warning_of_pytorch_about_the_precision_of_a_norm(recwarn: pytest.WarningsRecorder) -> None:
    """RMSNorm in bf16 with float32 weights, as every bf16 training has it."""
    norm, x = RMSNorm(RMSNorm.Config(), 8), torch.randn(2, 8)

    def run(line: app.CommandLine) -> int:
        with torch.autocast("cpu", torch.bfloat16):
            norm(x.bfloat16())
        return 0

    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        run(app.CommandLine())
        assert "Mismatch dtype" in str(recwarn.pop().message)
        assert app.answer(run, []) == 0
    finally:
        torch.set_warn_always(before)
    assert not [warning for warning in recwarn if "Mismatch dtype" in str(warning.message)]
