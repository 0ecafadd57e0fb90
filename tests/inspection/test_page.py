"""The page of mgpt-inspect: its content, and its response to pointing and clicking in a browser."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import ConfigError, DataError, GPTConfig, GPTModel, ablate_heads, capture, head_scores, logit_lens
from modular_gpt.core.registry import entries
from modular_gpt.data.tokenizers.char import CharTokenizer
from modular_gpt.inspection import write_page
from tests.components.laws import build
from tests.inspection.browser import run_in_page

TEXT = "to be <or> not & to be\n</script>!"
SETTINGS = dict(d_model=32, n_heads=4, n_layers=2, context_length=48, attention="gqa", ffn="moe")


@pytest.fixture(scope="module")
def tokenizer() -> CharTokenizer:
    return CharTokenizer(TEXT)


@pytest.fixture(scope="module")
def model(tokenizer: CharTokenizer) -> GPTModel:
    return build(GPTConfig(**{**SETTINGS, "vocab_size": tokenizer.vocab_size}))


@pytest.fixture(scope="module")
def page(model: GPTModel, tokenizer: CharTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(model, tokenizer, TEXT, tmp_path_factory.mktemp("page") / "page.html", title="a <model>")


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_its_numbers_equal_those_of_the_model(model: GPTModel, tokenizer: CharTokenizer, page: Path) -> None:
    data, ids = data_of(page), torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad(), capture(model, "*.weights", "*.chosen") as seen:
        logits = model(ids)
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    assert data["losses"][0] is None
    torch.testing.assert_close(torch.tensor(data["losses"][1:]), losses, atol=1e-4, rtol=0)
    count = len(TEXT)
    for layer in range(2):
        for head in range(4):
            packed = torch.tensor(list(base64.b64decode(data["weights"][layer][head])))
            weights = torch.zeros(count, count)
            weights[tuple(torch.tril_indices(count, count))] = (packed / 255).square()
            assert (weights - seen[f"blocks.{layer}.attention.weights"][0, head]).abs().max() < 0.005
        for expert, text in enumerate(data["routes"][layer]["experts"]):
            chosen = (seen[f"blocks.{layer}.ffn.chosen"][0] == expert).any(-1)
            assert list(base64.b64decode(text)) == chosen.int().tolist()
    best = logit_lens(model, ids)[:, 0].softmax(-1).topk(5, -1)
    for token in (0, 11, count - 1):
        for layer in range(3):
            shown = data["lens"][token][layer]
            assert [id for id, _ in shown] == best.indices[layer, token].tolist()
            assert [value for _, value in shown] == pytest.approx(best.values[layer, token].tolist(), abs=1e-4)


def test_the_table_of_heads(model: GPTModel, tokenizer: CharTokenizer, page: Path) -> None:
    ids = torch.tensor([tokenizer.encode(TEXT)])
    columns = [*head_scores(model).values(), ablate_heads(model, ids[:, :-1], ids[:, 1:])]
    row = re.search(r"<tr><th>1\.2</th>(.*?)</tr>", page.read_text(encoding="utf-8"))
    assert row is not None
    assert re.findall(r">(-?[\d.]+)</td>", row[1]) == [
        f"{round(float(column[1, 2]), 2) + 0.0:.2f}" for column in columns
    ]


def test_it_is_self_contained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""\b(?:src|href)\s*=|@import|url\(|https?:|fetch\(|import\(""", text)
    assert "default-src 'none'" in text
    assert "<h1>a &lt;model&gt;</h1>" in text
    assert text.count("</script>") == 2  # the one in the text is escaped


def test_long_texts_are_truncated_and_short_ones_refused(
    model: GPTModel, tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    written = write_page(model, tokenizer, TEXT * 3, tmp_path / "page.html", max_tokens=10, layers=[1])
    data = data_of(written)
    assert len(data["tokens"]) == 10 and data["layers"] == [1]
    assert "shows the first 10 tokens of the text" in written.read_text(encoding="utf-8")
    with pytest.raises(DataError, match="the text 't' has 1 token; give one with at least 2"):
        write_page(model, tokenizer, "t", tmp_path / "page.html")
    for settings, refusal in (
        ({"layers": [2]}, "layers=2 does not exist; the blocks of this model are 0 to 1"),
        ({"max_tokens": 300}, "max_tokens=300 must lie between 2 and 256"),
    ):
        with pytest.raises(ConfigError, match=refusal):
            write_page(model, tokenizer, TEXT, tmp_path / "page.html", **settings)


@pytest.mark.parametrize("attention", entries("attention"))
def test_every_attention_has_a_page(attention: str, tokenizer: CharTokenizer, tmp_path: Path) -> None:
    settings = {**SETTINGS, "attention": attention, "ffn": "mlp", "vocab_size": tokenizer.vocab_size}
    written = write_page(build(GPTConfig(**settings)), tokenizer, TEXT, tmp_path / "page.html")
    data, text = data_of(written), written.read_text(encoding="utf-8")
    maps = 1 if attention == "shortconv" else 4
    assert [len(layer) for layer in data["weights"]] == [maps, maps] and not data["routes"]
    assert "loss without it" in text
    assert ("absolute values" in text) == (not entries("attention")[attention].component.accepts_bias)


def test_a_hybrid_has_a_page(tokenizer: CharTokenizer, tmp_path: Path) -> None:
    """Layers with different numbers of heads, and one whose channels are not heads."""
    mixers = [{"name": "gated_delta", "value_heads": 6, "key_heads": 2}, "shortconv", "gqa", "lightning"]
    variants = {f"m{place}": {"attention": mixer} for place, mixer in enumerate(mixers)}
    layers = {"cycle": list(variants), "variants": variants}
    settings = {**SETTINGS, "n_layers": 4, "ffn": "mlp", "vocab_size": tokenizer.vocab_size, "layers": layers}
    model = build(GPTConfig(**settings))
    written = write_page(model, tokenizer, TEXT, tmp_path / "page.html")
    assert [len(layer) for layer in data_of(written)["weights"]] == [6, 1, 4, 4]
    text = written.read_text(encoding="utf-8")
    rows = re.findall(r"<tr><th>(\d\.\w+)</th>", text)
    assert rows == [*(f"0.{n}" for n in range(6)), "1.mean", *(f"{i}.{n}" for i in (2, 3) for n in range(4))]
    assert text.count("mean of channels") == 3
    assert "<h1>gated_delta + shortconv + gqa + lightning, 4 layers, 4 heads</h1>" in text
    only = write_page(model, tokenizer, TEXT, tmp_path / "one.html", layers=[1])
    assert [len(layer) for layer in data_of(only)["weights"]] == [1]


POINT = """
const figure = document.querySelectorAll("figure")[5], map = figure.querySelector(".map");
figure.scrollIntoView({ block: "end" });
const box = map.getBoundingClientRect(), row = 20;
const hit = touch("pointermove", box.left + box.width / 2, box.top + (box.height * (row + 0.5)) / length);
const shades = tokens.map((token) => Number(getComputedStyle(token).getPropertyValue("--p")));
const marked = tokens.flatMap((token, column) => (token.classList.contains("chosen") ? [column] : []));
const backgrounds = new Set(tokens.map((token) => getComputedStyle(token).backgroundColor));
const status = document.getElementById("status").textContent;
map.dispatchEvent(new PointerEvent("pointerleave"));
scrollTo(0, document.body.scrollHeight);
const reader = document.getElementById("reader").getBoundingClientRect();
const after = document.getElementById("status").textContent;
return { marked, hit: hit && hit.tagName, shades, backgrounds: backgrounds.size, status, top: reader.top, after };
"""


def test_pointing_at_a_row_shades_the_tokens_it_attends_to(
    model: GPTModel, tokenizer: CharTokenizer, page: Path, tmp_path: Path
) -> None:
    found = run_in_page(page, tmp_path, POINT)
    with torch.no_grad(), capture(model, "*.weights") as seen:
        model(torch.tensor([tokenizer.encode(TEXT)]))
    expected = seen["blocks.1.attention.weights"][0, 1, 20].sqrt()  # the sixth map: four heads in block 0
    assert found["hit"] == "CANVAS"
    torch.testing.assert_close(torch.tensor(found["shades"]), expected, atol=0.005, rtol=0)
    assert found["backgrounds"] > 3
    strongest = int(expected.argmax())
    assert found["status"].startswith(f"block 1, head 1, token 20 “{TEXT[20]}” reads “")
    assert re.search(r"reads “.+?” \((\d+)\)", found["status"])[1] == str(strongest)  # type: ignore[index]
    assert found["top"] == 0  # the text stays visible
    assert found["marked"] == [20]
    assert found["after"].startswith(f"token {len(TEXT) - 2} “{TEXT[-2]}” · loss ")


CLICK = """
touch("click", ...(() => { const box = tokens[3].getBoundingClientRect(); return [box.left + 2, box.top + 8]; })());
const rows = [...document.querySelectorAll("#lens tr")].map((row) => [...row.children].map((cell) => cell.textContent));
const actual = [...document.querySelectorAll("#lens td.actual")].map((cell) => cell.firstChild.textContent.trim());
const status = document.getElementById("status").textContent;
document.getElementById("text").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
const next = document.getElementById("status").textContent;
const expert = document.querySelectorAll(".routes figure")[0];
expert.scrollIntoView({ block: "end" });
const box = expert.querySelector(".map").getBoundingClientRect();
touch("click", box.left + 5, box.top + (box.height * 2.5) / routes[0].length);
const shaded = tokens.filter((token) => Number(token.style.getPropertyValue("--p")) > 0).length;
const pinned = document.querySelectorAll(".pinned").length, routing = document.getElementById("status").textContent;
touch("click", box.left + 5, box.top + (box.height * 2.5) / routes[0].length);
return { rows, actual, status, next, shaded, pinned, routing, unpinned: document.querySelectorAll(".pinned").length };
"""


def test_clicking_shows_predictions_and_the_tokens_of_an_expert(page: Path, tmp_path: Path) -> None:
    data = data_of(page)
    found = run_in_page(page, tmp_path, CLICK)
    assert found["status"].startswith("token 3 “b” · loss ")
    assert found["next"].startswith("token 4 “e” · loss ")
    assert [row[0] for row in found["rows"]] == ["read after", "embedding", "block 0", "block 1"]
    first = data["lens"][3][2][0]
    assert found["rows"][3][1].startswith(data["words"][str(first[0])])
    assert set(found["actual"]) <= {"e"}
    count = sum(base64.b64decode(data["routes"][0]["experts"][2]))
    assert found["shaded"] == count and found["pinned"] == 1 and found["unpinned"] == 0
    assert found["routing"] == f"block 0, expert 2: {count} of {len(TEXT)} tokens"


LOOK = """
const context = document.querySelector("canvas").getContext("2d");
const pixel = (x, y) => [...context.getImageData(x, y, 1, 1).data];
const style = getComputedStyle(document.body);
const unscrolled = [...document.querySelectorAll("body *")].filter((element) => !element.closest(".scroll"));
const wide = unscrolled.filter((element) => element.getBoundingClientRect().right > innerWidth + 1);
return {
  width: innerWidth, scroll: document.documentElement.scrollWidth, wide: wide.map((element) => element.tagName),
  hidden: pixel(length - 1, 0), full: pixel(0, 0), paper: style.backgroundColor, ink: style.color };
"""


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1200, True)])
def test_it_fits_narrow_and_wide_windows_in_light_and_dark(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    found = run_in_page(page, tmp_path, LOOK, width, dark)
    assert found["width"] == width and found["scroll"] <= width and not found["wide"]
    paper, ink = (list(map(int, re.findall(r"\d+", found[name]))) for name in ("paper", "ink"))
    assert (sum(paper) < sum(ink)) == dark
    assert found["hidden"][:3] == paper  # a later token is masked
    assert found["full"][:3] == ink  # the first token attends to itself only
