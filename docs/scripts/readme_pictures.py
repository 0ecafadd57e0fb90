"""Train a small model and draw pictures of README.md: docs/images/training.png and docs/images/attention.png.

python docs/scripts/readme_pictures.py    # a minute on two CPU cores
"""

import textwrap
from pathlib import Path

import torch

from modular_gpt import GPTModel, History, capture, fit
from modular_gpt.training.displayed_figure import DisplayedFigure

IMAGES = Path(__file__).resolve().parents[1] / "images"
SAMPLE = "the cat saw the cat"


def repetitive_text() -> str:
    """Return a text of sentences in which a noun is repeated, so that attention to its first occurrence helps."""
    numbers = torch.Generator().manual_seed(0)
    nouns = ["cat", "dog", "fox", "hen", "owl", "pig", "rat", "yak"]
    pairs = [nouns[int(torch.randint(len(nouns), (), generator=numbers))] for _ in range(2500)]
    return "".join(f"the {noun} saw the {noun}. " for noun in pairs)


def train() -> tuple[GPTModel, History]:
    """Return a model of two layers that was trained on the text, and the metrics of its training."""
    torch.manual_seed(0)
    model = GPTModel(vocab_size=256, d_model=64, n_heads=4, n_layers=2, context_length=64)
    settings = {"max_steps": 300, "batch_size": 16, "learning_rate": 4e-3, "eval_interval": 20, "quiet": True}
    return model, fit(model, repetitive_text(), "byte", validation=0.1, **settings)


def attention(model: GPTModel) -> DisplayedFigure:
    """Draw the attention weights of every head on a sample, with a row for each layer and a column for each head."""
    with torch.no_grad(), capture(model, "blocks.*.attention.weights") as seen:
        model(torch.tensor([list(SAMPLE.encode())]))
    figure = DisplayedFigure(figsize=(9, 4.8), dpi=80, layout="constrained")
    axes = figure.subplots(len(seen), 4)
    for layer, weights in enumerate(seen.values()):
        for head in range(4):
            axis = axes[layer, head]
            axis.imshow(weights[0, head].numpy(), cmap="Blues", vmin=0, vmax=1)
            axis.set_title(f"layer {layer}, head {head}", fontsize=9)
            axis.set_xticks(range(len(SAMPLE)), SAMPLE, fontsize=6)
            axis.set_yticks(range(len(SAMPLE)), SAMPLE, fontsize=6)
    return figure


def main() -> None:
    model, history = train()
    history.plot().savefig(IMAGES / "training.png", dpi=80)
    attention(model).savefig(IMAGES / "attention.png", dpi=80)
    print(textwrap.shorten(repr(history), 100))


if __name__ == "__main__":
    main()
