"""Contrastive search: https://arxiv.org/abs/2202.06417

Of the k most likely tokens, the one with the largest (1 - alpha) * probability - alpha * similarity is chosen. The
similarity is the largest cosine between its hidden state and that of a token before it. Nothing is drawn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import TokenBuffer
from modular_gpt.generation.strategies.base import Strategy


class ContrastiveSearch(Strategy):
    """Keeps k rows per text that differ in their last token only, so that the k candidates are read together.

    It needs k cache rows per text, which are copied at each token, and a hidden state per token of the text.
    """

    def __init__(self, runner: ModelRunner, text: TokenBuffer, sampler: Sampler, candidates: int, alpha: float) -> None:
        """text: prompts and chosen tokens; runner: has an unread copy of the prompts"""
        self._runner = runner
        self._text = text
        self._sampler = sampler
        self._alpha = alpha
        self._k = min(candidates, runner.model.config.vocab_size)
        self._states: Tensor | None = None  # (B, largest number of columns, D) unit vectors
        self._count = 0  # number of their columns in use
        self._logits: Tensor | None = None  # (B, V) after the text

    def advance(self, max_tokens: int, stopped: Tensor) -> tuple[Tensor, Tensor]:
        states, logits = self._read_prompt(max_tokens) if self._states is None else (self._states, self._logits)
        assert logits is not None
        scores = self._sampler.adjust(logits, self._text)
        probabilities, candidates = scores.softmax(-1).topk(self._k, dim=-1)  # (B, k)
        self._runner.text.append(candidates.reshape(-1, 1))
        hidden = self._runner.hidden_states()[:, 0]  # (B * k, D)
        new = F.normalize(hidden.float(), dim=-1).unflatten(0, (-1, self._k))  # (B, k, D)
        similarity = (new @ states[:, : self._count].mT).amax(-1)
        value = (1 - self._alpha) * probabilities - self._alpha * similarity
        best = value.masked_fill(scores.gather(1, candidates).isneginf(), -torch.inf).argmax(-1)  # (B,)
        rows = torch.arange(len(best), device=best.device)
        winners = rows * self._k + best
        self._runner.reorder(winners.repeat_interleave(self._k))
        states[:, self._count] = new[rows, best]
        self._count += 1
        self._logits = self._runner.model.logits(hidden[winners])
        return candidates[rows, best][:, None], logits[:, None]

    def _read_prompt(self, max_tokens: int) -> tuple[Tensor, Tensor]:
        """Compute the hidden states of the prompt (its last context_length tokens) and the logits after it."""
        runner, padding = self._runner, self._runner.text.padding
        count = min(runner.text.length, runner.context)
        hidden = runner.hidden_states(count)  # (B, count, D)
        self._states = states = hidden.new_zeros(len(hidden), count + max_tokens, hidden.shape[-1], dtype=torch.float32)
        states[:, :count] = F.normalize(hidden.float(), dim=-1)
        if padding is not None:  # the last state in place of padding changes no maximum
            column = torch.arange(runner.text.length - count, runner.text.length, device=hidden.device)
            absent = column < padding[:, None]
            states[:, :count] = torch.where(absent[..., None], states[:, count - 1 : count], states[:, :count])
        self._count = count
        runner.expand(self._k)
        return states, runner.model.logits(hidden[:, -1])
