"""The registry: components by name, and user-defined components."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest
from torch import Tensor, nn

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core import registry
from modular_gpt.core.contracts import FeedForward, Norm
from modular_gpt.core.registry import ComponentConfig, Preset, decode, encode, entries, slots
from tests.fresh import python

PLUGIN = """
from modular_gpt.core.contracts import FeedForward


class Nothing(FeedForward, name="nothing"):
    '''Adds nothing.'''

    def forward(self, x):
        return x * 0, {}
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the registry after each test."""
    before = {slot: dict(known) for slot, known in registry._entries.items()}
    yield
    registry._entries.clear()
    registry._entries.update(before)


def define(name: str = "toy", qualname: str = "Toy", **body: object) -> type[Norm]:
    """A norm without effect, defined as in a notebook cell."""

    class Toy(Norm, name=name):
        """The identity."""

        __qualname__ = qualname

        def forward(self, x: Tensor) -> Tensor:
            return x

    return Toy


def test_the_four_slots() -> None:
    assert {"attention", "ffn", "norm", "pos"} <= set(slots())
    assert set(entries("attention")) >= {"mha", "mqa", "gqa", "swa", "mla", "linear"}
    assert set(entries("ffn")) >= {"mlp", "swiglu", "geglu", "reglu", "moe"}
    assert set(entries("norm")) >= {"layernorm", "rmsnorm", "scalenorm"}
    assert set(entries("pos")) >= {"learned", "sinusoidal", "rope", "alibi", "none"}


@pytest.mark.parametrize("slot", ["attention", "ffn", "norm", "pos"])
def test_every_name_has_a_summary_and_its_class_a_source(slot: str) -> None:
    for name, entry in entries(slot).items():
        assert entry.name == name == entry.default().name
        assert entry.summary.endswith((".", ")")) and "\n" not in entry.summary and len(entry.summary) < 110
        source = sys.modules[entry.component.__module__].__doc__ or ""
        assert "http" in source, f"{name}: a paper link stands at the top of its file"


def test_a_preset_is_its_component_with_settings_changed() -> None:
    mqa = decode("attention", "mqa")
    assert (mqa.name, mqa.n_kv_heads) == ("mqa", 1)
    assert decode("attention", {"name": "mqa", "n_kv_heads": 2}).n_kv_heads == 2
    assert type(mqa) is type(decode("attention", "mha"))
    assert decode("attention", encode(mqa)) == mqa


def test_a_duplicate_name_is_refused_and_the_first_is_kept() -> None:
    first = define()
    with pytest.raises(ConfigError) as error:
        define(qualname="Other")
    assert "the norm name 'toy' is taken by" in str(error.value) and "give" in str(error.value)
    assert "\n" not in str(error.value) and entries("norm")["toy"].component is first


def test_a_class_of_the_same_name_in_another_module_is_refused() -> None:
    registered = entries("norm")["rmsnorm"].component
    with pytest.raises(
        ConfigError, match=r"the norm name 'rmsnorm' is taken by modular_gpt\.nn\.norm\.rmsnorm\.RMSNorm"
    ):

        class RMSNorm(Norm, name="rmsnorm"):
            __qualname__ = "RMSNorm"

            def forward(self, x: Tensor) -> Tensor:
                return x

    assert entries("norm")["rmsnorm"].component is registered


def test_a_duplicate_preset_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="the norm name 'rmsnorm' is taken"):

        class Duplicate(Norm, name="duplicate", presets={"rmsnorm": Preset("Not the same.", {})}):
            def forward(self, x: Tensor) -> Tensor:
                return x


def test_the_same_class_again_replaces_it() -> None:
    """As when a notebook cell is run twice."""
    first, second = define(), define()
    assert first is not second and entries("norm")["toy"].component is second
    model = GPTModel(GPTConfig(d_model=32, n_layers=1, norm="toy"))
    assert type(model.final_norm) is second
    with pytest.raises(ConfigError, match="is no longer registered"):
        GPTConfig(norm=first.Config())


def test_a_config_of_the_wrong_slot() -> None:
    with pytest.raises(ConfigError, match=r"attention cannot be a RMSNorm\.Config"):
        GPTConfig(attention=decode("norm", "rmsnorm"))
    with pytest.raises(ConfigError, match="norm cannot be a ComponentConfig"):
        GPTConfig(norm=ComponentConfig())


def test_a_config_made_in_python_is_checked_like_one_that_is_read() -> None:
    config_type = type(decode("attention", "mha"))
    with pytest.raises(ConfigError, match=r"attention\.window must be a whole number or null, got '5'"):
        GPTConfig(attention=config_type(window="5"))
    with pytest.raises(ConfigError, match=r"attention\.window must be above 0, got 0"):
        GPTConfig(attention=config_type(window=0))


def test_a_user_component_with_settings_of_many_types() -> None:
    class Scaled(FeedForward, name="scaled"):
        """Multiplies by a number."""

        @dataclass
        class Config(ComponentConfig):
            factor: float = 2.0
            times: Optional[int] = None  # noqa: UP045  the older spelling works as well
            note: str | None = None

        def __init__(self, config: Config, dims: object) -> None:
            super().__init__(config, dims)  # type: ignore[arg-type]
            self.factor = config.factor
            self.linear = nn.Linear(dims.d_model, dims.d_model)  # type: ignore[attr-defined]

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.linear(x) * self.factor, {}

    config = GPTConfig(d_model=32, n_layers=1, ffn={"name": "scaled", "factor": 3, "times": 2, "note": "hello"})
    assert GPTConfig.from_dict(config.to_dict()) == config
    assert GPTModel(config).blocks[0].ffn.factor == 3.0
    with pytest.raises(ConfigError, match=r"ffn\.times must be a whole number or null, got 'two'"):
        GPTConfig(ffn={"name": "scaled", "times": "two"})


def run(code: str, folder: Path, root: Path, plugins: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MODULAR_GPT_PLUGINS": plugins, "PYTHONPATH": f"{folder}{os.pathsep}{root}"}
    return python("-c", code, env=environment, cwd=folder)


def test_plugin_modules_named_in_the_environment(tmp_path: Path, root: Path) -> None:
    (tmp_path / "my_parts.py").write_text(PLUGIN)
    (tmp_path / "more_parts.py").write_text(PLUGIN.replace("Nothing", "Less").replace('"nothing"', '"less"'))
    code = (
        "from modular_gpt import GPTConfig, GPTModel; import torch\n"
        "from modular_gpt.core.registry import entries\n"
        "assert 'less' in entries('ffn'), list(entries('ffn'))\n"
        "model = GPTModel(GPTConfig(ffn='nothing', n_layers=1, d_model=32))\n"
        "print(entries('ffn')['nothing'].summary, model(torch.zeros(1, 3, dtype=torch.long)).shape)\n"
    )
    done = run(code, tmp_path, root, "my_parts, more_parts,")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Adds nothing. torch.Size([1, 3, 256])"


def test_a_plugin_that_is_missing_is_named(tmp_path: Path, root: Path) -> None:
    code = (
        "from modular_gpt import ConfigError, GPTConfig\ntry: GPTConfig()\nexcept ConfigError as error: print(error)\n"
    )
    done = run(code, tmp_path, root, "no_such_parts")
    sentence = "MODULAR_GPT_PLUGINS names 'no_such_parts', which cannot be imported: No module named 'no_such_parts'"
    assert done.stdout.strip() == sentence, done.stderr


def test_without_the_environment_no_plugin_is_imported(tmp_path: Path, root: Path) -> None:
    (tmp_path / "my_parts.py").write_text("raise SystemExit('imported')")
    code = "from modular_gpt import GPTConfig; GPTConfig.from_dict({'ffn': {'name': 'my_parts.Nothing'}})"
    done = run(code, tmp_path, root, "")
    assert "no ffn 'my_parts.Nothing'" in done.stderr and "imported" not in done.stderr
