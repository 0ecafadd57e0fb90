"""The report is one small page without scripts or links, and fits narrow and wide windows."""

import html
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.comparison import CompareResult
from modular_gpt.comparison.decoding import DecodingSpeed
from modular_gpt.comparison.diagnostics import Check
from modular_gpt.comparison.svg import Axis, linear_ticks, log_ticks, short
from tests.comparison.small import invented

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> CompareResult:
    """Eight variants with ten seeds; one run diverged."""
    numbers = random.Random(0)
    losses = {
        f"variant-{index}-<of-8>": [2 + 0.05 * index + numbers.gauss(0, 0.02) for _ in range(10)] for index in range(8)
    }
    losses["variant-7-<of-8>"][3] = math.inf
    result = invented(tmp_path_factory.mktemp("large"), losses)
    for place, name in enumerate(losses):
        result.decoding[name] = [
            DecodingSpeed(tokens, 500.0 - place - tokens / 10, 600.0) for tokens in (128, 512, 2048)
        ]
    result.checks.extend(Check(name, "the receptive field", "16 of 16", "16", True, 0.1) for name in losses)
    result.checks.append(Check("variant-1-<of-8>", "the scores", "moved", "the same", False, 0.1))
    result.checks.append(Check("variant-2-<of-8>", "D1 lag 8", "1.000", "at least 0.990", True, 2.5, trained=True))
    result.checks.append(Check("variant-3-<of-8>", "D1 lag 8", "0.300", "at least 0.990", False, 2.5, trained=True))
    result.pages.update({"variant-0-<of-8>": "inspect-0.html"})
    return result


def test_the_page_is_small_and_self_contained(large: CompareResult) -> None:
    page = large.save_report().read_text()
    assert len(page.encode()) <= 200_000
    assert "<script" not in page and "http" not in page and "@import" not in page and "url(" not in page
    assert page.count("<svg") == 5
    assert "variant-3-&lt;of-8&gt;" in page and "<of-8>" not in page
    for sentence in ("Wrong: variant-1-&lt;of-8&gt;, the scores: moved.", "WRONG: moved", "16 of 16"):
        assert sentence in page
    for sentence in ("Minimum detectable difference", "What this does not show", "mgpt-compare attention=mha,gqa"):
        assert sentence in page


def test_all_three_reports_have_every_variant_and_verdict(large: CompareResult) -> None:
    page = large.save_report()
    text, values = page.with_suffix(".md").read_text(), json.loads(page.with_suffix(".json").read_text())
    for name, difference in large.differences.items():
        assert f"| {name} | {difference.sentence} |" in text
        assert values["differences"][name]["verdict"] == difference.verdict
        assert re.search(rf"^{re.escape(name)} +{re.escape(difference.sentence)}", large.table, re.MULTILINE)
    assert large.differences["variant-7-<of-8>"].verdict == "worse"
    assert values["variants"]["variant-7-<of-8>"]["diverged"] == 1


def test_learned_tasks_are_a_table_of_all_three_reports(large: CompareResult) -> None:
    row = ["D1 lag 8", "variant-3-<of-8>", "at least 0.990", "0.300", "fail", "2.5"]
    page = large.save_report()
    assert f"| {' | '.join(row)} |" in page.with_suffix(".md").read_text()
    assert re.search(" +".join(map(re.escape, row)), large.table)
    assert '<td class="verdict fail">fail</td><td>2.5</td>' in page.read_text()
    assert page.read_text().count("D1 lag 8") == 3  # one row per variant, and the note; no row of the probes
    values = json.loads(page.with_suffix(".json").read_text())["checks"]
    assert [check["passed"] for check in values if check["trained"]] == [True, False]


EDGES = {
    "one seed": ([2.0], [2.1]),
    "two seeds": ([2.0, 2.1], [2.1, math.inf]),
    "equal numbers": ([2.0, 2.1, 2.2], [2.0, 2.1, 2.2]),
    "no variance": ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0]),
    "one shift": ([2.0, 2.1, 2.2], [2.5, 2.6, 2.7]),
    "all diverged": ([math.inf] * 3, [math.inf] * 3),
    "losses of zero": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    "far apart": ([2.0, 2.1, 2.2], [1e30, 1e30, 1e30]),
}
VERDICTS = ["no verdict (n < 3)"] * 2 + ["equivalent"] * 2 + ["worse", "cannot tell", "equivalent", "worse"]


@pytest.mark.parametrize(("edge", "verdict"), list(zip(EDGES, VERDICTS, strict=True)))
def test_reports_of_unusual_losses(edge: str, verdict: str, tmp_path: Path) -> None:
    result = invented(tmp_path, dict(zip("ab", EDGES[edge], strict=True)))
    assert result.differences["b"].sentence == verdict
    for text in (result.table, result.save_report().read_text(), (tmp_path / "report.md").read_text()):
        assert verdict.replace("<", "&lt;") in text or verdict in text
        assert not re.search(r"\b(?:nan|inf)\b", text)
    assert "NaN" not in (tmp_path / "report.json").read_text()


def test_ranks_that_depend_on_the_budget_are_reported(tmp_path: Path) -> None:
    """A variant that is ahead only because it trains longer."""
    from modular_gpt.comparison.budget import Cost
    from modular_gpt.comparison.curves import flips

    curves = {"short": [(0.25, 3.0), (0.5, 2.6), (1.0, 2.2)], "long": [(0.25, 3.2), (0.5, 2.5), (1.0, 2.0)]}
    costs = {"short": Cost(1, 1, 1.0, 10, 100, 1), "long": Cost(1, 1, 1.0, 40, 400, 1)}
    found = flips(curves, costs, {"short": 1.0, "long": 1.0}, 0.02)
    assert [sentence.split(" these")[0] for sentence in found] == ["Under equal tokens", "Under equal FLOPs"]
    assert "short and long" in found[0]
    assert flips(curves, costs, {"short": 1.0, "long": 1.0}, 0.25) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.31, 2.36), (-0.17, 0.17), (0, 307200), (1e-9, 3e-9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-12 <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert len({short(tick) for tick in ticks}) == len(ticks)


def test_ticks_of_a_logarithmic_axis() -> None:
    assert log_ticks(1e-3, 2e-2) == pytest.approx([1e-3, 2e-3, 5e-3, 1e-2, 2e-2])
    assert len(log_ticks(1, 1e12)) <= 8
    assert len(Axis(1100, 1900, log=True).ticks()) > 1
    assert Axis(1, 100, log=True).fraction(10) == pytest.approx(0.5)


WINDOWS = [(width, scheme) for width in (1200, 400) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def measured(large: CompareResult, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Sizes of the page in frames of all widths and color schemes, measured by a script in one browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    folder, page = tmp_path_factory.mktemp("windows"), large.save_report().read_text()
    (folder / "light.html").write_text(page)
    (folder / "dark.html").write_text(page.replace("(prefers-color-scheme:dark)", "all"))
    frames = (
        f'<iframe src="{scheme}.html" style="width:{width}px;height:3000px;border:0" onload="measure(event.target,'
        f' {width}, &quot;{width} {scheme}&quot;)"></iframe>'
        for width, scheme in WINDOWS
    )
    (folder / "outer.html").write_text(OUTER.replace("FRAMES", "\n".join(frames)))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    profile = f"--user-data-dir={folder / 'profile'}"
    answer = subprocess.run(
        [CHROMIUM, *flags, profile, "--virtual-time-budget=5000", f"file://{folder / 'outer.html'}"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(\{.*?\})</pre>', answer.stdout)
    assert found, answer.stderr[-2000:]
    windows: dict[str, dict[str, Any]] = json.loads(html.unescape(found[1]))
    return windows


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_nothing_is_wider_than_the_window(width: int, scheme: str, measured: dict[str, dict[str, Any]]) -> None:
    found = measured[f"{width} {scheme}"]
    assert found["width"] <= width and found["outside"] == []
    dark = scheme == "dark"
    assert (found["paper"] < 100) is dark and (found["ink"] > 150) is dark


OUTER = """<!doctype html><body style="margin:0">
<pre id="found"></pre><script>
const found = {}
function measure(frame, width, name) {
  const inner = frame.contentDocument, view = frame.contentWindow
  const shown = inner.querySelectorAll("h1,h2,p,li,pre,svg,.scroll,.key,svg text")
  const outside = [...shown].filter(element => {
    const box = element.getBoundingClientRect()
    return box.left < -0.5 || box.right > width + 0.5
  }).map(element => element.tagName + " " + element.textContent.slice(0, 40))
  const style = view.getComputedStyle(inner.body), bright = colour => Number(colour.match(/\\d+/)[0])
  found[name] = {width: inner.documentElement.scrollWidth, outside,
    paper: bright(style.backgroundColor), ink: bright(style.color)}
  document.getElementById("found").textContent = JSON.stringify(found)
}
</script>
FRAMES
</body>"""
