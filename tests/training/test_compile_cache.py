"""A process killed while compiling leaves an incomplete library; later runs neither fail nor become slower."""

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.exc import InductorError

from modular_gpt import GPTModel
from modular_gpt.distributed import build_parallel
from modular_gpt.runtime.compile_cache import VARIABLE, CompileCache, is_truncated
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training.forward import Forward

LIBRARY = next(Path(torch.__file__).parent.glob("_C*.so"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The compile cache of the package, with a complete library."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path))
    root = tmp_path / "compiled"
    (root / "ab").mkdir(parents=True)
    shutil.copy(LIBRARY, root / "ab" / "code.so")
    return root


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="other formats of libraries are not looked into")
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3])
def test_an_incomplete_library_clears_the_directory(root: Path, share: float) -> None:
    library = root / "ab" / "code.so"
    assert not is_truncated(library) and CompileCache(root).directory == root and library.is_file()
    content = library.read_bytes()
    library.write_bytes(content[: int(share * len(content))])
    assert is_truncated(library)
    CompileCache(root)
    assert not list(root.parent.rglob("code.so"))


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="other formats of libraries are not looked into")
def test_a_missing_library(root: Path) -> None:
    library = root / "ab" / "code.so"
    library.write_bytes(bytes(10_000))
    assert is_truncated(library)


def test_a_directory_of_the_user_is_not_cleared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(root))
    (root / "ab" / "code.so").write_bytes(b"")
    cache = CompileCache(tmp_path / "other")
    assert cache.directory == root and not cache.clear() and (root / "ab" / "code.so").exists()


class FailingCompiler:
    """Fake torch.compile: its code fails while the directory contains files of a killed process."""

    def __init__(self, damaged: Path) -> None:
        self.damaged, self.compiled = damaged, 0

    def __call__(self, module: torch.nn.Module, **_: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*arguments: Any, **keywords: Any) -> Any:
            if self.damaged.exists():
                raise InductorError(RuntimeError("file too short"), None)
            return module(*arguments, **keywords)

        return run


def forward_with(monkeypatch: pytest.MonkeyPatch, compiler: FailingCompiler, optional: bool) -> Forward:
    monkeypatch.setattr(torch, "compile", compiler)
    model = GPTModel(vocab_size=11, d_model=8, n_heads=2, n_layers=1, context_length=8)
    return Forward(model, "float32", compile=True, parallel=build_parallel("none", ProcessGroup()), optional=optional)


@pytest.mark.parametrize("optional", [False, True])
def test_a_failing_compiler_is_retried_once_with_an_empty_directory(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, optional: bool
) -> None:
    header = root / "ab" / "precompiled.gch"
    header.write_bytes(b"half")
    forward = forward_with(monkeypatch, FailingCompiler(header), optional)
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert forward(ids, ids).loss.isfinite() and forward.compiled
    assert str(root) in caplog.text and "emptied" in caplog.text


@pytest.mark.parametrize("optional", [False, True])
def test_a_compiler_that_never_works(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optional: bool
) -> None:
    compiler = FailingCompiler(tmp_path)  # the damage stays
    forward = forward_with(monkeypatch, compiler, optional)
    ids = torch.zeros(1, 4, dtype=torch.long)
    if optional:
        assert forward(ids, ids).loss.isfinite() and not forward.compiled
    else:
        with pytest.raises(InductorError):
            forward(ids, ids)
    assert compiler.compiled == 2
