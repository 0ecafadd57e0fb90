"""mgpt-bench: its arguments and error messages. tests/benchmark tests the measurements."""

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention=mha,nope"], "no attention 'nope'"),
        (["context=0"], "benchmark.context must be above 0, got 0"),
        (["measure=speed"], "measure: no choice 'speed'"),
        (["checkpoint=x", "attention=mha"], "attention=mha describes a model"),
        (["--multirun", "attention=mha,gqa"], "mgpt-bench has the flags"),
        (["rounds=many"], "rounds"),
    ],
)
def test_mistakes(arguments: list[str], message: str, run: Run) -> None:
    result = run("bench", *arguments)
    assert result.code == 2
    assert message in result.err


def test_values_with_commas_are_variants_contexts_and_batches(run: Run) -> None:
    result = run("bench", "attention=mha,gqa", "context=64,128", "batch=1,8", "--cfg", "job")
    assert result.code == 0
    assert "context:\n- 64\n- 128\n" in result.out
    assert "# variant mha\n# variant gqa\n" in result.out
