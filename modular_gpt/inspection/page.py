"""Writes one HTML page about how a model processes a text; it needs a browser and no network."""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data import Tokenizer
from modular_gpt.generation import evaluating
from modular_gpt.inspection.activations import Activations, capture, tensor_names
from modular_gpt.inspection.heads import WEIGHTS, ablate_heads, attention_maps, head_counts, head_scores
from modular_gpt.inspection.lens import lens_layers
from modular_gpt.model import GPTModel

MAX_TOKENS = 256
MAX_MAPS = 160  # attention maps of a page
TOP = 5  # predictions of the logit lens
STRONG = 6.0  # loss in nats from which a token has the full colour
CHOSEN, ROUTER = "blocks.{}.ffn.chosen", "blocks.{}.ffn.router"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass
class Reading:
    """The tensors and measures that a page shows about a model and a text.

    ids: (T,); losses: (T - 1,) of each token after the first; lens: by layer, ids and probabilities (T, TOP)
    layers: the blocks whose heads are shown; maps: their attention weights (1, H, T, T); seen: the recorded tensors
    scores, rises: (n_layers, H) of ``head_scores`` by name, and of ``ablate_heads``
    """

    ids: Tensor
    losses: Tensor
    lens: list[tuple[Tensor, Tensor]]
    layers: list[int]
    maps: dict[int, Tensor]
    seen: Activations
    scores: dict[str, Tensor]
    rises: Tensor


def write_page(
    model: GPTModel,
    tokenizer: Tokenizer,
    text: str,
    path: Path | str,
    *,
    title: str = "",
    layers: Sequence[int] | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Path:
    """Write an HTML page about a text: losses, attention maps, logit lens, measures of heads, routing of experts.

    The page holds its own script and style and loads nothing.

    Args:
        path: of the file, which is replaced
        title: heading of the page; "": the attention of the model
        layers: blocks whose heads are shown; None: the first ones, up to 160 heads
        max_tokens: the text is cut after this many tokens, at most 256

    Returns:
        the path

    Raises:
        DataError: the text has fewer than two tokens, or a character that the tokenizer does not know.
        ConfigError: there is no such layer, or max_tokens is not between 2 and 256.
    """
    if not 2 <= max_tokens <= MAX_TOKENS:
        raise ConfigError(f"max_tokens={max_tokens} must lie between 2 and {MAX_TOKENS}")
    shown = _shown_layers(model, layers)
    ids = tokenizer.prompt_ids(text)
    if len(ids) < 2:
        raise DataError(f"the text {text!r} has {len(ids)} token; give one with at least 2")
    kept = ids[: min(max_tokens, model.config.context_length)]
    with torch.no_grad(), evaluating(model):
        reading = _read(model, torch.tensor(kept, device=model.embedding.weight.device), shown)
    cut = "" if len(kept) == len(ids) else f" The page shows the first {len(kept)} tokens of the text."
    write_text(Path(path), _page(title or describe(model), model, reading, _TokenTexts(tokenizer), cut))
    return Path(path)


def describe(model: GPTModel) -> str:
    """The attentions of a model in order of their first layer, and its numbers of layers and heads."""
    config = model.config
    names = dict.fromkeys(layer.attention.name for layer in config.layer_configs)
    return f"{' + '.join(names)}, {config.n_layers} layers, {config.n_heads} heads"


def _shown_layers(model: GPTModel, layers: Sequence[int] | None) -> list[int]:
    maps = [max(1, heads) for heads in head_counts(model)]
    count = len(maps)
    if layers is None:
        return [layer for layer in range(count) if layer == 0 or sum(maps[: layer + 1]) <= MAX_MAPS]
    for layer in layers:
        if not 0 <= layer < count:
            raise ConfigError(f"layers={layer} does not exist; the blocks of this model are 0 to {count - 1}")
    if sum(maps[layer] for layer in layers) > MAX_MAPS and len(layers) > 1:
        raise ConfigError(f"layers={list(layers)} have more than {MAX_MAPS} heads; show fewer at a time")
    return sorted(set(layers))


def _read(model: GPTModel, ids: Tensor, layers: list[int]) -> Reading:
    names = tensor_names(model)
    blocks = range(len(model.blocks))
    wanted = [pattern.format(block) for block in blocks for pattern in (CHOSEN, ROUTER)]
    with capture(model, "final", *(name for name in wanted if name in names)) as seen:
        logits = model(ids[None])
    lens = []
    for layer in lens_layers(model, ids[None]):
        best = layer[0].float().softmax(-1).topk(min(TOP, layer.shape[-1]), -1)
        lens.append((best.indices.cpu(), best.values.cpu()))
    has_weights = any(WEIGHTS.format(block) in names for block in blocks)
    scores = head_scores(model) if has_weights and model.config.context_length >= 4 else {}
    losses = F.cross_entropy(logits[0, :-1].float(), ids[1:], reduction="none").cpu()
    rises = ablate_heads(model, ids[None, :-1], ids[None, 1:], layers)
    maps = attention_maps(model, ids[None], layers)
    return Reading(ids.cpu(), losses, lens, layers, maps, seen, scores, rises)


class _TokenTexts:
    """Texts of ids, with the ids in order of their first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts: dict[int, str] = {}

    def __call__(self, id: int) -> str:
        if id not in self.texts:
            text = self.tokenizer.decode([id]) if self.tokenizer.has_text(id) else f"[{id}]"
            self.texts[id] = "".join(map(_visible, text)) or f"[{id}]"
        return self.texts[id]


def _visible(character: str) -> str:
    """A character as the page shows it: blanks and line ends as signs."""
    if character in " \n\t":
        return {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"}[character]
    return character if character.isprintable() else "\u00b7"


def _page(title: str, model: GPTModel, reading: Reading, token_texts: _TokenTexts, cut: str) -> str:
    texts = [token_texts(id) for id in reading.ids.tolist()]
    chosen, routers = _by_layer(reading, CHOSEN), _by_layer(reading, ROUTER)
    routes = {layer: F.one_hot(chosen[layer][0], routers[layer].shape[-1]).amax(1).T for layer in chosen}  # (E, T)
    data = _data(reading, token_texts, texts, routes)
    body = [
        f"<h1>{escape(title)}</h1>",
        _note(_summary(reading, cut)),
        f'<div id="reader"><div id="text" tabindex="0">{_spans(texts)}</div><p class="note" id="status"></p></div>',
        _attention(model, reading.maps),
        _routing(routes),
        _heading("Logit lens", _LENS),
        '<div class="scroll"><table id="lens"></table></div>',
        _heads(model, reading),
    ]
    here = files("modular_gpt.inspection")
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{style}</style></head><body>{''.join(body)}"
        f'<script type="application/json" id="data">{_json(data)}</script><script>{script}</script></body></html>\n'
    )


_LENS = (
    "The predictions for the token after the chosen one that the head reads from the residual stream after each block. "
    "The frame marks the token that follows in the text."
)
_SCORES = (
    "Share of a head's weight that goes to the token before, the first token and the token itself, and, on random "
    "tokens that are repeated once, to the token after the earlier occurrence of the same one (induction). The last "
    "column is the rise of the loss on this text, in nats per token, when the head's output is replaced by its mean."
)


def _by_layer(reading: Reading, pattern: str) -> dict[int, Tensor]:
    """The recorded tensors of a pattern by block."""
    blocks = range(len(reading.rises))
    return {block: reading.seen[name] for block in blocks if (name := pattern.format(block)) in reading.seen}


def _summary(reading: Reading, cut: str) -> str:
    mean = float(reading.losses.mean())
    return (
        f"Mean loss {mean:.3f} nats per token. Red: how surprising each token was. Click a token to see its "
        f"predictions. Point at a row of a map to see in the text what that token reads; click to keep it.{cut}"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _heading(text: str, note: str) -> str:
    return f"<h2>{escape(text)}</h2>{_note(note)}"


def _spans(texts: Sequence[str]) -> str:
    return "".join(f'<span class="token">{escape(text)}</span>' for text in texts)


def _figure(attributes: str, size: tuple[int, int], caption: str) -> str:
    width, height = size
    canvas = f'<canvas width="{width}" height="{height}" role="img" aria-label="{escape(caption)}"></canvas>'
    return f'<figure {attributes}><div class="map">{canvas}<i></i></div>{escape(caption)}</figure>'


def _attention(model: GPTModel, maps: dict[int, Tensor]) -> str:
    if not maps:
        return ""
    drawn = []
    for place, (layer, weights) in enumerate(maps.items()):
        _, heads, count, _ = weights.shape
        captions = ["mean of channels"] if _has_channels(model, layer) else [f"head {head}" for head in range(heads)]
        figures = (
            _figure(f'data-layer="{place}" data-head="{head}" data-name="{caption}"', (count, count), caption)
            for head, caption in enumerate(captions)
        )
        drawn.append(f'<h3>block {layer}</h3><div class="maps">{"".join(figures)}</div>')
    note = "One map for each head: rows are the tokens that read, columns the tokens that are read."
    if not all(model.config.layer_configs[layer].attention_class.accepts_bias for layer in maps):
        note += " Mixers without a softmax have weights of both signs: shown are absolute values, as shares of a row."
    return _heading("Attention weights", note) + "".join(drawn)


def _has_channels(model: GPTModel, layer: int) -> bool:
    return model.config.layer_configs[layer].attention_class.heads_are_channels


def _routing(routes: dict[int, Tensor]) -> str:
    if not routes:
        return ""
    figures = (
        _figure(f'data-layer="{place}"', (route.shape[1], route.shape[0]), f"block {layer}")
        for place, (layer, route) in enumerate(routes.items())
    )
    note = "Rows are experts, columns the tokens of the text; point at a row to see the tokens that an expert gets."
    return _heading("Routing to experts", note) + f'<div class="maps routes">{"".join(figures)}</div>'


def _heads(model: GPTModel, reading: Reading) -> str:
    names = [*reading.scores, "loss without it"]
    columns = [*reading.scores.values(), reading.rises]
    head = "".join(f"<th>{escape(name)}</th>" for name in ["block.head", *names])
    rows = []
    for layer in reading.layers:
        for number in range(max(column.shape[1] for column in columns)):
            values = [float(column[layer, number]) if number < column.shape[1] else math.nan for column in columns]
            if not all(map(math.isnan, values)):
                name = "mean" if _has_channels(model, layer) else number
                rows.append(f"<tr><th>{layer}.{name}</th>{''.join(map(_share, values))}</tr>")
    if not rows:
        return ""
    return _heading("Heads", _SCORES) + f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _share(value: float) -> str:
    """A cell with its number as colour; a dash where there is none."""
    if value != value:
        return "<td>\u2013</td>"
    return f'<td style="--p:{min(1.0, max(0.0, value)):.3f}">{round(value, 2) + 0.0:.2f}</td>'


def _data(
    reading: Reading,
    token_texts: _TokenTexts,
    texts: list[str],
    routes: dict[int, Tensor],
) -> dict[str, object]:
    """The data of the page's script, as plain JSON values."""
    losses = [None, *(round(loss, 4) for loss in reading.losses.tolist())]
    lens = [
        [
            [[id, round(value, 4)] for id, value in zip(ids[token].tolist(), values[token].tolist(), strict=True)]
            for ids, values in reading.lens
        ]
        for token in range(len(texts))
    ]
    for token in lens:
        for predictions in token:
            for id, _ in predictions:
                token_texts(int(id))
    return {
        "tokens": texts,
        "ids": reading.ids.tolist(),
        "losses": losses,
        "shades": [0.0 if loss is None else round(min(1.0, loss / STRONG), 3) for loss in losses],
        "layers": list(reading.maps),
        "weights": [[_triangle(head) for head in weights[0]] for weights in reading.maps.values()],
        "routes": [
            {"index": layer, "experts": [_base64(expert) for expert in route]} for layer, route in routes.items()
        ],
        "lens": lens,
        "words": token_texts.texts,
    }


def _triangle(weights: Tensor) -> str:
    """The lower triangle of (T, T), row by row, as bytes of 255 times the square root of each weight."""
    row, column = torch.tril_indices(*weights.shape)
    return _base64(weights.float().cpu()[row, column].clamp(0, 1).sqrt() * 255)


def _base64(values: Tensor) -> str:
    rounded = values.float().cpu().round().to(torch.uint8)
    return base64.b64encode(rounded.numpy().tobytes()).decode()


def _json(data: dict[str, object]) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
