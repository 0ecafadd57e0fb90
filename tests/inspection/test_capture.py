"""Names, patterns, edits and early stops of ``capture``, and its error messages."""

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from modular_gpt import ConfigError, GPTConfig, GPTModel, capture
from modular_gpt.core import observer
from modular_gpt.core.registry import entries
from modular_gpt.model.topologies import TOPOLOGIES
from tests.components.laws import build, text

SMALL = dict(vocab_size=31, d_model=32, n_heads=4, n_layers=3, context_length=32)


@pytest.fixture
def model() -> GPTModel:
    return build(GPTConfig(**SMALL))


@pytest.fixture
def ids(model: GPTModel) -> Tensor:
    return text(model.config)


def test_every_name_and_its_shape() -> None:
    model = build(GPTConfig(**{**SMALL, "n_layers": 1}, attention="gqa", ffn="moe"))
    with capture(model) as seen:
        model(text(model.config))
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        "embedding": (3, 20, 32),
        "blocks.0.attention.query": (3, 4, 20, 8),
        "blocks.0.attention.key": (3, 2, 20, 8),
        "blocks.0.attention.value": (3, 2, 20, 8),
        "blocks.0.attention.scores": (3, 4, 20, 20),
        "blocks.0.attention.weights": (3, 4, 20, 20),
        "blocks.0.attention.heads": (3, 4, 20, 8),
        "blocks.0.attention.out": (3, 20, 32),
        "blocks.0.ffn.router": (3, 20, 8),
        "blocks.0.ffn.chosen": (3, 20, 2),
        "blocks.0.ffn.out": (3, 20, 32),
        "blocks.0.residual": (3, 20, 32),
        "final": (3, 20, 32),
    }


@pytest.mark.parametrize("topology", TOPOLOGIES)
@torch.no_grad()
def test_reports_equal_the_outputs_of_modules(topology: str) -> None:
    model = build(GPTConfig(**SMALL, topology=topology))
    returned: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module | None) -> None:
        def hook(_: nn.Module, __: object, out: Tensor | tuple[Tensor, object]) -> None:
            returned[name] = out[0] if isinstance(out, tuple) else out

        if module is not None:
            module.register_forward_hook(hook)

    for index, block in enumerate(model.blocks):
        keep(f"blocks.{index}.residual", block)
        keep(f"blocks.{index}.attention.out", block.attention)
        keep(f"blocks.{index}.ffn.out", block.ffn)
    keep("final", model.final_norm)
    with capture(model, *returned, "blocks.*.residual", "*.out") as seen:
        model(text(model.config))
    assert set(seen) == set(returned) - {"final"}
    for name, value in seen.items():
        assert torch.equal(value, returned[name])


@torch.no_grad()
def test_the_head_reads_final(model: GPTModel, ids: Tensor) -> None:
    with capture(model, "final", "embedding") as seen:
        logits = model(ids)
    assert torch.equal(model.logits(seen["final"]), logits)
    assert torch.equal(seen["embedding"], model.embedding(ids))


def test_patterns_select_the_recorded_tensors(model: GPTModel, ids: Tensor) -> None:
    with capture(model, "blocks.1.residual", "blocks.*.attention.weights") as seen:
        model(ids)
    assert set(seen) == {"blocks.1.residual", *(f"blocks.{i}.attention.weights" for i in range(3))}
    assert seen.stack("*.weights").shape == (3, 3, 4, 20, 20)
    assert not any(value.requires_grad for value in seen.values())
    with pytest.raises(KeyError, match=r"no tensor 'blocks\.1\.residuals' was recorded; recorded are blocks\.1\.resid"):
        seen["blocks.1.residuals"]


@torch.no_grad()
def test_recorded_tensors_do_not_change_afterwards(model: GPTModel, ids: Tensor) -> None:
    cache = model.new_cache(3, 20)
    with capture(model, "blocks.0.attention.key") as seen:
        model(ids[:, :9], cache=cache)
    before = seen["blocks.0.attention.key"].clone()
    cache.reset()
    model(ids[:, 9:18], cache=cache)
    assert torch.equal(seen["blocks.0.attention.key"], before)


def test_scores_are_computed_only_on_request(model: GPTModel, ids: Tensor) -> None:
    with mock.patch("modular_gpt.nn.sdpa.softmax") as softmax, capture(model, "*.residual", "*.heads", "*.query"):
        model(ids)
    assert softmax.call_count == 0


def operations(run: object) -> list[str]:
    """Names of the tensor operations that a function runs, in order."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found.append(str(function))
            return function(*args, **(kwargs or {}))

    with Count():
        run()
    return found


@pytest.mark.parametrize(
    "settings", [*({"attention": name, "pos": "none"} for name in entries("attention")), {"ffn": "moe"}]
)
@torch.no_grad()
def test_without_a_capture_there_are_no_extra_operations_and_few_calls(settings: dict[str, str]) -> None:
    """A pass runs the same tensor operations as one without reports; a block reads the context variable a few times."""
    model = build(GPTConfig(**SMALL, **settings))
    ids = text(model.config)
    model(ids)
    usual = operations(lambda: model(ids))
    names = ("report", "enter_block", "is_observed")
    with mock.patch.multiple(observer, _active=mock.DEFAULT) as patched:
        patched["_active"].return_value = ()
        assert operations(lambda: model(ids)) == usual
        assert patched["_active"].call_count <= 8 * len(model.blocks) + 5, names


@torch.no_grad()
def test_an_edit_changes_one_head(model: GPTModel, ids: Tensor) -> None:
    def zero_second(heads: Tensor) -> Tensor:
        return torch.cat([heads[:, :2], torch.zeros_like(heads[:, 2:3]), heads[:, 3:]], dim=1)

    with capture(model, "blocks.1.attention.*", edit={"blocks.1.attention.heads": zero_second}) as seen:
        edited = model(ids)
    heads = seen["blocks.1.attention.heads"]
    assert heads[:, 2].abs().max() == 0 and heads[:, 1].abs().max() > 0
    # equal to the output projection without the columns of head 2
    width = heads.shape[-1]
    model.blocks[1].attention.out.weight.data[:, 2 * width : 3 * width] = 0
    torch.testing.assert_close(model(ids), edited)


@torch.no_grad()
def test_a_stream_patched_from_another_run_gives_its_logits(model: GPTModel, ids: Tensor) -> None:
    other = ids.flip(1)
    with capture(model, "blocks.1.residual") as clean:
        expected = model(ids)
    with capture(model, edit={"blocks.1.residual": lambda _: clean["blocks.1.residual"]}) as seen:
        patched = model(other)
    assert torch.equal(patched, expected) and not seen
    assert not torch.equal(model(other), expected)


def test_an_edit_may_run_the_model(model: GPTModel, ids: Tensor) -> None:
    runs = []

    def other(stream: Tensor) -> Tensor:
        with torch.no_grad():
            runs.append(model.hidden_states(ids)[0])
        return stream

    with capture(model, edit={"blocks.0.residual": other}):
        model(ids)
    assert len(runs) == 1


def test_gradients_reach_an_edited_tensor(model: GPTModel, ids: Tensor) -> None:
    kept = []

    def keep(weights: Tensor) -> Tensor:
        weights.retain_grad()
        kept.append(weights)
        return weights

    with capture(model, edit={"blocks.*.attention.weights": keep}):
        model(ids[:, :-1], ids[:, 1:]).loss.backward()
    assert all(weights.grad is not None and weights.grad.abs().max() > 0 for weights in kept)


def test_recomputed_blocks_report_once_with_equal_gradients(model: GPTModel, ids: Tensor) -> None:
    gradients = []
    for every in (0, 1):
        model.checkpoint_activations(every)
        model.zero_grad()
        calls: list[Tensor] = []
        with capture(model, edit={"blocks.*.residual": lambda x, calls=calls: calls.append(x) or 2 * x}):
            loss = model(ids[:, :-1], ids[:, 1:]).loss
        loss.backward()
        assert len(calls) == 3
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@torch.no_grad()
def test_a_pass_stops_after_the_last_tensor_that_is_needed(model: GPTModel, ids: Tensor) -> None:
    ran = []
    model.blocks[2].register_forward_hook(lambda *_: ran.append(2))
    model.blocks[1].register_forward_hook(lambda *_: ran.append(1))
    with capture(model, "blocks.0.*", stop="blocks.1.residual") as seen:
        model(ids)
        raise AssertionError("the block has ended before")
    assert ran == [1]
    assert set(seen) and all(name.startswith("blocks.0.") for name in seen)
    model(ids)
    assert ran == [1, 1, 2]


@torch.no_grad()
def test_captures_can_be_nested_and_record_only_their_model(model: GPTModel, ids: Tensor) -> None:
    other = build(GPTConfig(**SMALL), seed=7)
    with capture(model, "final") as outer, capture(other, "final") as second, capture(model, "embedding") as inner:
        model(ids)
        other(ids)
    assert set(outer) == {"final"} and set(inner) == {"embedding"}
    assert torch.equal(other.logits(second["final"]), other(ids))
    assert torch.equal(model.logits(outer["final"]), model(ids))


def test_generation_is_observed_step_by_step(model: GPTModel) -> None:
    prompt = torch.tensor([[1, 2, 3]])
    steps: list[int] = []

    def count(weights: Tensor) -> Tensor:
        steps.append(weights.shape[-1])
        return weights

    plain = model.generate(prompt, 5, greedy=True)
    with capture(model, edit={"blocks.0.attention.scores": count}):
        assert torch.equal(model.generate(prompt, 5, greedy=True), plain)
    assert steps == [3, 4, 5, 6, 7]


def test_a_wrapper_of_the_model_is_accepted(model: GPTModel, ids: Tensor) -> None:
    with capture(nn.Sequential(model), "final") as seen:
        model(ids)
    assert set(seen) == {"final"}


def test_an_exception_ends_the_capture(model: GPTModel, ids: Tensor) -> None:
    with pytest.raises(ZeroDivisionError), capture(model):
        model(ids)
        raise ZeroDivisionError
    assert not observer.is_observed()


def test_a_pattern_that_matches_nothing_is_refused(model: GPTModel, ids: Tensor) -> None:
    for settings in ({"edit": {"blocks.0.ffn.router": lambda x: x}}, {"stop": "blocks.0.ffn.router"}):
        with (
            pytest.raises(ConfigError, match=r"no tensor that matches 'blocks\.0\.ffn\.router'; this model reports bl"),
            capture(model, **settings),
        ):
            model(ids)
    with pytest.raises(ConfigError, match=r"matches 'blocks\.7\.residual'"), capture(model, "blocks.7.residual"):
        model(ids)


def test_a_wrong_edit_is_refused(model: GPTModel, ids: Tensor) -> None:
    for wrong, got in ((lambda x: x[:, :1], r"\(3, 1, 32\)"), (lambda x: None, "NoneType")):
        refusal = rf"edit of final must return a tensor of shape \(3, 20, 32\), got {got}"
        with pytest.raises(ConfigError, match=refusal), capture(model, edit={"final": wrong}):
            model(ids)


def test_compiled_models_are_refused(model: GPTModel, ids: Tensor) -> None:
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ConfigError, match=r"compiled by torch\.compile reports nothing"), capture(compiled):
        pass
    with pytest.raises(ConfigError, match="no forward pass was observed"), capture(model, "final"):
        compiled(ids)
    with pytest.raises(ConfigError, match="a compiled generation reports nothing to capture"), capture(model, "final"):
        model.generate(ids[:1, :3], 2, compile=True)
    model.compile(backend="eager")
    with pytest.raises(ConfigError, match=r"compiled by torch\.compile reports nothing"), capture(model):
        pass


def test_a_module_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes a GPTModel, got a Linear without one"), capture(nn.Linear(2, 2)):
        pass
