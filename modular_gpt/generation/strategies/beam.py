"""Beam search for the most likely texts, with ``num_beams`` candidates: https://arxiv.org/abs/1609.08144, section 7

The score of a text is the sum of its log-probabilities divided by its number of new tokens (a stop token counts) to the
power of length_penalty: above 0 favours long texts, below 0 short ones. The search ends when no incomplete text can
score better than the ``num_beams`` best complete ones.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sampling import Sampler

_STEPS_BETWEEN_CHECKS = 16


@dataclass
class Pool:
    """The ``num_beams`` best complete texts of each prompt, best first; a score of -inf marks an empty entry.

    scores: (B, beams); lengths: (B, beams) new tokens; ids, logprobs: (B, beams, max_new_tokens)
    """

    scores: Tensor
    lengths: Tensor
    ids: Tensor
    logprobs: Tensor

    @classmethod
    def empty(cls, prompts: int, beams: int, max_tokens: int, device: torch.device) -> "Pool":
        return cls(
            torch.full((prompts, beams), -torch.inf, device=device),
            torch.zeros(prompts, beams, dtype=torch.long, device=device),
            torch.zeros(prompts, beams, max_tokens, dtype=torch.long, device=device),
            torch.zeros(prompts, beams, max_tokens, device=device),
        )

    def merge(self, scores: Tensor, length: int, ids: Tensor, logprobs: Tensor) -> None:
        """Add texts of ``length`` new tokens: scores (B, n), ids and log-probabilities (B, n, length)."""
        beams, max_tokens = self.ids.shape[1:]
        missing = (0, max_tokens - length)
        self.scores, order = torch.cat([self.scores, scores], dim=1).topk(beams, dim=1)
        self.lengths = torch.cat([self.lengths, torch.full_like(scores, length, dtype=torch.long)], 1).gather(1, order)
        wide = order[..., None].expand(-1, -1, max_tokens)
        pad = torch.nn.functional.pad
        self.ids = torch.cat([self.ids, pad(ids, missing)], dim=1).gather(1, wide)
        self.logprobs = torch.cat([self.logprobs, pad(logprobs, missing)], 1).gather(1, wide)

    def texts(self, prompt: int) -> list[tuple[list[int], float, list[float]]]:
        """The texts of a prompt, best first, as (ids, score, log-probability of each token)."""
        texts = []
        for index, score in enumerate(self.scores[prompt].tolist()):
            if score > -torch.inf:
                length = int(self.lengths[prompt, index])
                ids = self.ids[prompt, index, :length].tolist()
                texts.append((ids, score, self.logprobs[prompt, index, :length].tolist()))
        return texts


class BeamSearch:
    """Extends the beams of each prompt by their most likely tokens."""

    def __init__(self, runner: ModelRunner, sampler: Sampler, settings: GenerationConfig) -> None:
        """runner: reads the prompts, one row each"""
        self._runner = runner
        self._sampler = sampler
        self._settings = settings
        self._stops = torch.tensor(settings.stop_tokens, dtype=torch.long, device=runner.text.ids.device)

    def search(self) -> Pool:
        """The best texts of each prompt."""
        settings, beams, runner = self._settings, self._settings.num_beams, self._runner
        prompts, device = runner.cache.batch, runner.text.ids.device
        max_tokens = settings.max_new_tokens
        pool = Pool.empty(prompts, beams, max_tokens, device)
        if max_tokens == 0:
            pool.scores[:, 0] = 0.0  # the only text is empty
            return pool
        runner.prefill()
        runner.expand(beams)
        totals = torch.full((prompts, beams), -torch.inf, device=device)
        totals[:, 0] = 0.0  # all beams are equal at first, so that only one of them counts
        scores = torch.zeros(prompts, beams, max_tokens, device=device)  # log probability of each token
        every = 1 if device.type == "cpu" else _STEPS_BETWEEN_CHECKS
        for length in range(1, max_tokens + 1):
            totals, scores = self._step(length, totals, scores, pool)
            if len(self._stops) and length % every == 0 and self._settled(length, totals, pool):
                return pool
        pool.merge(totals / max_tokens**settings.length_penalty, max_tokens, self._new(prompts), scores)
        return pool

    def _step(self, length: int, totals: Tensor, scores: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        """Extend each beam by each token: the best complete texts join the pool, the best others become the beams."""
        prompts, beams = totals.shape
        runner = self._runner
        logits = self._sampler.adjust(runner.logits()[:, 0], runner.text)
        logprobs = logits.log_softmax(-1).unflatten(0, (prompts, beams))
        vocab_size = logits.shape[-1]
        candidates = (totals[..., None] + logprobs).flatten(1)  # (B, beams * V)
        best, index = candidates.topk(min(beams * (1 + len(self._stops)), candidates.shape[1]), dim=1)
        parent, token = index // vocab_size, index % vocab_size
        score = logprobs.flatten(1).gather(1, index)
        ends = torch.isin(token, self._stops)

        def continued(which: Tensor) -> tuple[Tensor, Tensor]:
            """Ids and log-probabilities of tokens, both (B, n, length), of the candidates ``which`` (B, n)."""
            parents = parent.gather(1, which)[..., None].expand(-1, -1, length - 1)
            ids = torch.cat([self._new(prompts).gather(1, parents), token.gather(1, which)[..., None]], dim=-1)
            old = scores[..., : length - 1].gather(1, parents)
            return ids, torch.cat([old, score.gather(1, which)[..., None]], dim=-1)

        if len(self._stops):
            complete = torch.arange(beams, device=best.device).expand(prompts, -1)[:, : best.shape[1]]
            ending = best[:, :beams].masked_fill(~ends[:, :beams], -torch.inf)
            pool.merge(ending / length**self._settings.length_penalty, length, *continued(complete))
        totals, alive = best.masked_fill(ends, -torch.inf).topk(min(beams, best.shape[1]), dim=1)
        _, new_scores = continued(alive)
        rows = torch.arange(prompts, device=best.device)[:, None] * beams + parent.gather(1, alive)
        runner.reorder(rows.flatten())
        runner.text.append(token.gather(1, alive).flatten()[:, None])
        scores = scores.clone()
        scores[..., :length] = new_scores
        return totals, scores

    def _new(self, prompts: int) -> Tensor:
        """The new tokens so far, (B, beams, length)."""
        new: Tensor = self._runner.text.generated.unflatten(0, (prompts, -1))
        return new

    def _settled(self, length: int, totals: Tensor, pool: Pool) -> bool:
        """Whether no beam can beat the worst complete text, since totals only fall; divisor: the most favourable."""
        penalty = self._settings.length_penalty
        divisor = max(math.pow(length, penalty), math.pow(self._settings.max_new_tokens, penalty))
        return bool((totals[:, 0] / divisor <= pool.scores[:, -1]).all())
