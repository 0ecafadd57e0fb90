"""Diagnostics D1 to D5: small models learn tasks whose result follows from their architecture.

D1 staircase: the lag that L layers of windows w reach is L (w - 1). D2 recall: one layer with a short convolution finds
the values of keys if its attention can address them. D3 latents: the effect of the norm of a latent. D4 capacity: the
number of pairs that a state of constant size holds. D5 length: the loss beyond the trained length.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.comparison.diagnostics.learning import Learned, Recipe, learn, trainer_of
from modular_gpt.comparison.diagnostics.probes import reach
from modular_gpt.core.contracts import AttentionConfig
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentLike, decode
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig
from modular_gpt.nn.attention.mha import MultiHeadAttention

CONTEXT, WIDTH, HEADS = 64, 64, 4
LAG, PAIRS, CONV = 8, 8, 3
LAG_IDS, RECALL_IDS = 32, 128
SOLVED = 0.99  # accuracy
LONG, RISE = 256, 0.05  # tokens beyond the trained length; rise of a loss that is flat, in nats
TEXT, BYTES = {"name": "python_stdlib"}, 256  # of D5, with the tokenizer byte
TEXT_ROWS, COUNTED = 24, 32  # rows and last tokens whose loss counts
MARGIN = 0.03  # of an accuracy above its ceiling: three standard deviations of 2,000 answers
STAIRCASE = Recipe(steps=200)
TEXT_RECIPE = Recipe(steps=300, learning_rate=4e-3, batch_size=16)
RECALL, QUICK_RECALL = Recipe(steps=700), Recipe(steps=300, learning_rate=5e-3)


@dataclass(frozen=True)
class Task:
    """A model and the task that it learns.

    lowest, highest: limits of the expected accuracy; None: no limit is known
    """

    name: str
    model: GPTConfig
    data: PlainDict
    recipe: Recipe
    lowest: float | None = None
    highest: float | None = None

    @property
    def expected(self) -> str:
        """The answer that follows from the architecture."""
        if self.lowest is not None:
            return f"at least {self.lowest:.3f}"
        return "" if self.highest is None else f"at most {self.highest:.3f}"

    def right(self, accuracy: float) -> bool | None:
        """Whether an accuracy is the expected one."""
        if self.lowest is None and self.highest is None:
            return None
        return (self.lowest is None or accuracy >= self.lowest) and (self.highest is None or accuracy <= self.highest)

    def learn(self) -> Learned:
        """Train the model."""
        return learn(self.model, self.data, self.recipe)


def small(attention: ComponentLike, vocab_size: int, **settings: object) -> GPTConfig:
    """A model that learns in seconds: width 64, 4 heads, one layer, 64 tokens."""
    sizes: PlainDict = {"d_model": WIDTH, "n_heads": HEADS, "n_layers": 1, "context_length": CONTEXT, "bias": False}
    given: PlainDict = {**sizes, "ffn": {"name": "mlp", "hidden": WIDTH}, "attention": attention, **settings}
    return GPTConfig(vocab_size=vocab_size, **given)


def staircase(attention: ComponentLike, layers: int = 1, **settings: object) -> Task:
    """D1: recall of the token LAG - 1 places back, which the layers reach or not.

    If they do not, the accuracy is that of guessing, since ids are uniform and independent.
    """
    model = small(attention, LAG_IDS, n_layers=layers, **settings)
    farthest = reach(model)
    solvable = farthest is not None and farthest >= LAG - 1
    return Task(
        f"D1 lag {LAG} in {layers} layer{'s' if layers > 1 else ''}",
        model,
        {"task": "lag", "lag": LAG, "vocab_size": LAG_IDS},
        STAIRCASE,
        lowest=SOLVED if solvable and has_full_heads(model) else None,
        highest=None if solvable or farthest is None else 1 / LAG_IDS + MARGIN,
    )


def with_conv(attention: ComponentLike) -> ComponentLike | None:
    """The same attention with a convolution; None if it has no such setting."""
    config = decode("attention", attention)
    return replace(config, conv=CONV) if isinstance(config, AttentionConfig) else None


def recall(attention: ComponentLike, pairs: int = PAIRS, quick: bool = False, **settings: object) -> Task | None:
    """D2: multi-query associative recall in one layer with a convolution; None for an attention without ``conv``.

    A softmax over all tokens solves it. With a window, the pairs that are out of reach can only be guessed.

    quick: use rows of half the length with half the pairs and ids, which are learned in a third of the time
    """
    chosen = with_conv(attention)
    if chosen is None:
        return None
    context, ids, pairs = (CONTEXT // 2, RECALL_IDS // 2, pairs // 2) if quick else (CONTEXT, RECALL_IDS, pairs)
    model = small(chosen, ids, **{"context_length": context, **settings})
    whole = reach(model)
    ceiling = 1.0 if whole is None else visible_pairs(whole - (CONV - 1), pairs, context)
    return Task(
        f"D2 recall of {pairs} pairs",
        model,
        {"task": "mqar", "pairs": pairs, "vocab_size": ids},
        QUICK_RECALL if quick else RECALL,
        lowest=SOLVED if ceiling == 1.0 and has_full_heads(model) else None,
        highest=ceiling + (1 - ceiling) * 2 / ids + MARGIN if ceiling < 1.0 else None,
    )


def capacity(attention: ComponentLike, **settings: object) -> Task | None:
    """D4: recall of twice as many pairs, which a softmax distinguishes and a state of constant size may not."""
    task = recall(attention, 2 * PAIRS, quick=False, **settings)
    return None if task is None else replace(task, name=f"D4 recall of {2 * PAIRS} pairs")


def has_full_heads(model: GPTConfig) -> bool:
    """Whether the first layer has softmax attention with keys and values of full width over all tokens of its window.

    Then a solvable task is solved. Latents and states hold less, so that their accuracy is only measured.
    """
    attention = model.layer_configs[0].attention_class
    return issubclass(attention, MultiHeadAttention) and attention.sees_whole_window


def visible_pairs(window: int, pairs: int, context: int = CONTEXT) -> float:
    """The fraction of the questions of mqar whose value is at most ``window`` tokens back, by counting.

    The value of pair i is at place 2 i + 1; the questions, at places 2 pairs + 2 s, are spread evenly.
    """
    slots = (context - 2 * pairs) // 2
    reached = [2 * pairs + 2 * slot - (2 * pair + 1) <= window for slot in range(slots) for pair in range(pairs)]
    return sum(reached) / len(reached)


def latent(rank: int, norm: str | None) -> Task:
    """D3: recall by latent attention, with and without the norm of its latents."""
    attention = {"name": "mla", "kv_lora_rank": rank, "latent_norm": norm}
    task = recall(attention)
    assert task is not None
    return replace(task, name=f"D3 recall, latent {rank}, norm {norm or 'none'}", lowest=None, highest=None)


@dataclass(frozen=True)
class Lengths:
    """Losses (nats per target) at the trained length and beyond it, by number of tokens."""

    losses: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rise(self) -> float:
        """The rise of the loss from the trained length to the longest one, in nats per target."""
        values = list(self.losses.values())
        return values[-1] - values[0]


def flat_beyond(attention: ComponentLike, **settings: object) -> bool | None:
    """Whether tokens of longer rows see no distance beyond the trained length.

    None if the position or the attention depends on more than distances, so that longer rows may be out of reach.
    """
    model = small(attention, BYTES, **settings)
    if not GPTModel(model).slides:
        return None
    farthest = reach(model)
    return farthest is not None and farthest < CONTEXT


def beyond_the_trained_length(attention: ComponentLike, lengths: Sequence[int], **settings: object) -> Lengths:
    """D5: train on text in rows of 64 tokens, and measure the loss after more tokens.

    The loss is that of the same last tokens of a text, after ``lengths`` tokens in all. Windows shorter than a trained
    row see no new distance in a longer one, and ALiBi suppresses distant tokens; full attention with rotary positions
    meets distances that it was never trained on.
    """
    begun = time.process_time()
    with torch.random.fork_rng(devices=[]):
        trainer = trainer_of(small(attention, BYTES, **settings), TEXT, TEXT_RECIPE)
        trainer.model.train()
        for step in range(1, TEXT_RECIPE.steps + 1):
            trainer.update()
            trainer.progress.step = step
        trainer.model.eval()
        ids, targets = trainer.data.beginning(TEXT_ROWS, max(lengths))
        losses = {length: _last_loss(trainer.model, ids[:, -length:], targets) for length in lengths}
    return Lengths(losses, time.process_time() - begun)


@torch.no_grad()
def _last_loss(model: GPTModel, ids: Tensor, targets: Tensor) -> float:
    """The loss of the last ``COUNTED`` tokens of rows, in nats per token."""
    logits = model(ids)[:, -COUNTED:]
    return float(F.cross_entropy(logits.flatten(0, 1), targets[:, -COUNTED:].flatten()))
