"""Optimisations keep the results: compiled code, weights rounded to bf16, reused memory."""

import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import modular_gpt.model.loss
from modular_gpt import GPTModel
from modular_gpt.checkpoint import FOLDER, STEP
from modular_gpt.distributed import build_parallel
from modular_gpt.runtime.cpu_allocator import keep_memory
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training import TrainerConfig
from modular_gpt.training.checkpointing import Checkpoints
from modular_gpt.training.compile import compiles, has_compiler, ordered_sums
from modular_gpt.training.forward import Forward, RoundedModel
from modular_gpt.training.run_directory import RunFiles
from tests.fresh import processes
from tests.training.small import EXPLAINED, MODEL, assert_same_ending, config, run, trainer_of

CPU = torch.device("cpu")


def tiny(**settings: Any) -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(**{**MODEL, "vocab_size": 40, "init_std": 0.3, **settings})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(40, (4, 17), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def gradients(model: GPTModel, forward: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    forward(*batch()).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("settings", "every", "chunk"),
    [
        ({"n_layers": 1}, 0, 2**24),
        ({"attention": "gqa", "ffn": "swiglu", "norm": "rmsnorm", "n_layers": 1}, 1, 1200),
        ({"ffn": "moe"}, 2, 2**24),
    ],
)
def test_gradients_of_rounded_weights_equal_those_of_the_model(
    settings: dict[str, Any], every: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with recomputed activations and logits; "aot_eager" is the compiler without its code generator."""
    monkeypatch.setattr(modular_gpt.model.loss, "_CHUNK", chunk)
    model = tiny(**settings)
    expected = gradients(model, model)
    model.checkpoint_activations(every)
    rounded = torch.compile(RoundedModel(model), backend="aot_eager", dynamic=False)
    found = gradients(model, rounded)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert not torch.equal(gradient, expected[name]), "it did compute in bf16"
        similarity = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert similarity > 0.98, name
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("attention", ["mha", {"name": "swa", "window": 5, "n_kv_heads": 1}, "mla"])
@pytest.mark.parametrize("pos", ["rope", "alibi"])
def test_eager_attention_in_compiled_training(attention: Any, pos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(attention=attention, pos=pos)
    expected = gradients(model, model)
    calls: list[int] = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = gradients(model, model)
    assert not calls
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


LONG = {"max_steps": 10**6, "batch_size": 64}


@pytest.mark.parametrize(
    ("settings", "device", "processes", "expected"),
    [
        ({"compile": True, "max_steps": 1}, "cpu", 4, True),
        ({"compile": False, **LONG}, "cpu", 1, False),
        ({"max_steps": 20}, "cpu", 1, False),
        (LONG, "cpu", 1, True),
        (LONG, "cpu", 2, False),
        (LONG, "mps", 1, False),
        (LONG, "cuda", 1, False),  # too little work to amortise a minute of compilation
    ],
)
def test_when_a_training_is_compiled(
    settings: dict[str, Any], device: str, processes: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modular_gpt.training.compile.has_compiler", lambda device: True)
    decision, reason = compiles(TrainerConfig(**settings), tiny().config, torch.device(device), processes)
    assert decision is expected
    assert bool(reason) is ("compile" not in settings)


def test_without_a_compiler_auto_does_not_compile() -> None:
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not has_compiler(CPU)
        assert compiles(TrainerConfig(**LONG), tiny().config, CPU, 1) == (False, "there is no compiler")


@pytest.mark.parametrize("optional", [True, False])
def test_a_failing_compiler(optional: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    forward = Forward(model, "float32", True, build_parallel("none", ProcessGroup()), optional)

    def fail(*args: Any, **keywords: Any) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no Python.h"), None)

    forward.module = fail  # type: ignore[assignment]
    if not optional:
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
            forward(*batch())
        return
    assert forward(*batch()).loss.equal(model(*batch()).loss)
    assert not forward.compiled
    assert "(RuntimeError: no Python.h), so training continues without it" in caplog.text


def test_an_error_of_the_model_is_not_reported_as_one_of_the_compiler() -> None:
    forward = Forward(tiny(), "float32", True, build_parallel("none", ProcessGroup()), optional=True)

    def fail(*args: Any, **keywords: Any) -> None:
        raise RuntimeError("shapes do not fit")

    forward.module = fail  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="shapes"):
        forward(*batch())


def test_a_resumed_run_keeps_its_choice_of_compilation(folder: Path) -> None:
    """It does not depend on the estimate at the resume, unless it is set."""
    settings = config(folder)
    trainer = trainer_of(settings)
    assert not trainer.forward.compiled
    trainer.forward.compiled = True  # lazy: no code is compiled before the first step
    checkpoints = Checkpoints(RunFiles(folder / "run"), trainer, settings.to_dict())
    checkpoints.save()
    at = checkpoints.path(0)
    assert trainer_of(config(folder), at).forward.compiled
    assert not trainer_of(config(folder, compile=False), at).forward.compiled


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_bf16_resumes_bitwise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two threads, which could sum the gradients of an embedding in any order.

    Evaluations, rotations, biases and further shapes are excluded, since the compiler would generate more files
    for them.
    """
    monkeypatch.setattr("modular_gpt.training.validation.Validation.loss", lambda *arguments: 1.0)
    settings = {"compile": True, "precision": "bf16", "threads": 2, "batch_size": 32, "max_steps": 6}
    settings |= {"sample_tokens": 0, "eval_interval": 6, "save_interval": 3}
    lean = {"n_layers": 1, "pos": "none", "norm": "rmsnorm", "bias": False, "ffn": {"name": "mlp", "hidden": 16}}
    settings |= {"model": lean}
    threads = torch.get_num_threads()
    try:
        whole = run(config(folder, **settings)).directory
        copy = Path(shutil.copytree(whole, whole.with_name("copy"), symlinks=True))
        resumed = run(config(folder, resume=str(copy / FOLDER / f"{STEP}00000003"), rewind=True, **settings)).directory
    finally:
        torch.set_num_threads(threads)
    assert resumed.samefile(copy)
    assert_same_ending(whole, resumed)


def test_ordered_sums_restore_the_settings() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with ordered_sums(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.empty(10).shape == (10,)
    assert torch.are_deterministic_algorithms_enabled() is before


def run_with_kept_memory() -> None:
    """Allocate a large block repeatedly and check whether it needs new pages."""
    keep_memory()
    # The free block used first depends on small blocks between them, so warm up for a few rounds.
    faults = min(page_faults(rounds=10) for _ in range(5))
    pages = 10 * 2**26 // resource.getpagesize()
    if faults >= pages / 100:
        sys.exit(f"{faults} page faults in memory of {pages} pages that had been freed")
    raise SystemExit(EXPLAINED)


def page_faults(rounds: int) -> int:
    """Page faults of consecutive blocks of 64 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory of the CPU is left alone where a GPU computes")
def test_freed_memory_is_reused() -> None:
    process = processes().Process(target=run_with_kept_memory)
    process.start()
    process.join()
    assert process.exitcode == EXPLAINED


@pytest.mark.parametrize("settings", [{"attention": "gqa", "bias": True}, {"ffn": "swiglu", "bias": False}])
def test_layers_with_the_same_input_are_fused_in_compiled_training(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(**settings)
    expected = gradients(model, model)
    called: list[str] = []
    ending = ("query", "key", "value", "gate", "up")  # no hooks, since with hooks the layers are called
    layers = {id(module): name for name, module in model.named_modules() if name.endswith(ending)}
    forward = torch.nn.Linear.forward

    def watched(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if id(self) in layers:
            called.append(layers[id(self)])
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = gradients(model, model)
    assert not [name for name in called if "attention" in name or settings.get("ffn")]
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)
    model.eval()
    model(batch()[0])
    assert called, "only while training"
