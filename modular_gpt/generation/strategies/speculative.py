"""Speculative decoding: https://arxiv.org/abs/2211.17192, and prompt lookup: https://arxiv.org/abs/2304.04487

A fast drafter drafts several tokens, the model reads all of them in one pass, and each is accepted with probability
min(1, p / q), where p is its probability under the model and q under the drafter. The first rejected token is replaced
by one drawn from max(p - q, 0), so that the text has the same distribution as without drafts.

All rows keep as many tokens as the row that accepted the fewest. A row's tokens do not depend on later ones, so this
does not change the distribution.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import RowGenerators, TokenBuffer
from modular_gpt.generation.strategies.base import Strategy


class Drafter(Protocol):
    """Drafts the next tokens of a text."""

    def draft(self, max_tokens: int) -> list[Tensor | None]:
        """Append at most ``max_tokens`` tokens to the text.

        Returns for each token the distribution (B, V) from which it was drawn, or None if nothing was drawn.
        """

    def rollback(self) -> None:
        """Called after the text was truncated: remove the rejected tokens from the cache."""


class ModelDrafter:
    """Drafts with a smaller model of the same vocabulary."""

    def __init__(self, runner: ModelRunner, sampler: Sampler, generators: RowGenerators) -> None:
        self._runner = runner
        self._sampler = sampler
        self._generators = generators

    def draft(self, max_tokens: int) -> list[Tensor | None]:
        runner, text = self._runner, self._runner.text
        if runner.remaining < max_tokens:  # drafts remain valid if the drafter sees less of the text than the model
            runner.reset_window()
        max_tokens = min(max_tokens, max(runner.remaining, 0))
        runner.begin_draft(max_tokens)
        drawn_from: list[Tensor | None] = []
        for _ in range(max_tokens):
            probabilities = self._sampler.distribution(runner.logits()[:, 0], text)
            text.append(self._sampler.draw(probabilities, self._generators)[:, None])
            drawn_from.append(probabilities)
        return drawn_from

    def rollback(self) -> None:
        self._runner.rollback()


class LookupDrafter:
    """Drafts the continuation of the last earlier occurrence of the last n tokens, n at most ``ngram``."""

    def __init__(self, text: TokenBuffer, ngram: int) -> None:
        self._text = text
        self._ngram = ngram

    def draft(self, max_tokens: int) -> list[Tensor | None]:
        follows = self._last_match()
        if max_tokens < 1 or not bool((follows > 0).any()):
            return []
        ids, length = self._text.ids, self._text.length
        # past the end of the text the pattern repeats; a row without a match drafts its last token
        period = torch.where(follows > 0, length - follows, 1)
        columns = torch.arange(max_tokens, device=ids.device)[None] % period[:, None] + (length - period)[:, None]
        self._text.append(ids.gather(1, columns))
        return [None] * max_tokens

    def _last_match(self) -> Tensor:
        """The column (B,) after the last earlier occurrence of the longest suffix that has one; 0: there is none."""
        ids, length = self._text.ids, self._text.length
        column = torch.arange(length, device=ids.device)
        text = torch.ones_like(ids, dtype=torch.bool)
        if self._text.padding is not None:
            text = column >= self._text.padding[:, None]
        same = text[:, :-1]  # whether the n tokens from here on equal the last n
        found = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        for n in range(1, min(self._ngram, length - 1) + 1):
            same = same[:, 1:] if n > 1 else same
            same = same & text[:, : length - n] & (ids[:, : length - n] == ids[:, length - n, None])
            found = torch.where(same.any(-1), (same * column[: length - n]).amax(-1) + n, found)
        return found

    def rollback(self) -> None:
        pass


@dataclass
class DraftCounts:
    """Numbers per row.

    rounds: passes of the model; drafted: drafted tokens; kept: drafted tokens that were kept
    """

    rounds: int = 0
    drafted: int = 0
    kept: int = 0


class SpeculativeDecoding(Strategy):
    """Generates several tokens per pass of the model."""

    def __init__(
        self,
        runner: ModelRunner,
        drafter: Drafter,
        sampler: Sampler,
        generators: RowGenerators,
        draft_tokens: int,
        counts: DraftCounts,
    ) -> None:
        self._runner = runner
        self._drafter = drafter
        self._sampler = sampler
        self._generators = generators
        self._draft_tokens = draft_tokens
        self._counts = counts

    def advance(self, max_tokens: int, stopped: Tensor) -> tuple[Tensor, Tensor]:
        runner, text = self._runner, self._runner.text
        start = text.length
        allowed = min(self._draft_tokens, max_tokens - 1, max(runner.draftable, 0))
        runner.begin_draft(allowed)
        drawn_from = self._drafter.draft(allowed)
        drafts = text.ids[:, start:].clone()  # (B, n)
        logits = runner.logits(len(drawn_from) + 1)
        targets = [self._sampler.distribution(logits[:, i], text.until(start + i)) for i in range(logits.shape[1])]
        accepted = self._accepted(drafts, drawn_from, targets)  # (B,)
        fewest = int(torch.where(stopped, drafts.shape[1], accepted).min())
        last = self._last_token(fewest, accepted, drafts, drawn_from, targets)
        text.truncate(start + fewest)
        runner.rollback()
        self._drafter.rollback()
        text.truncate(start)
        self._counts.rounds += 1
        self._counts.drafted += drafts.shape[1]
        self._counts.kept += fewest
        return torch.cat([drafts[:, :fewest], last[:, None]], dim=1), logits[:, : fewest + 1]

    def _accepted(self, drafts: Tensor, drawn_from: list[Tensor | None], targets: list[Tensor]) -> Tensor:
        """The number (B,) of the drafts (B, n) that each row accepts; targets: the model's distributions (B, V)."""
        accepts = torch.ones_like(drafts, dtype=torch.bool)
        for i, q in enumerate(drawn_from):
            token = drafts[:, i : i + 1]
            p = targets[i].gather(1, token)[:, 0]
            chance = p if q is None else p / q.gather(1, token)[:, 0]
            accepts[:, i] = chance >= 1 if self._sampler.settings.greedy else self._generators.uniform() < chance
        return accepts.long().cumprod(dim=1).sum(dim=1)

    def _last_token(
        self,
        fewest: int,
        accepted: Tensor,
        drafts: Tensor,
        drawn_from: list[Tensor | None],
        targets: list[Tensor],
    ) -> Tensor:
        """The token (B,) after ``fewest`` drafts: the next draft if it was accepted, else drawn from max(p - q, 0)."""
        p = targets[fewest]
        if fewest == drafts.shape[1]:
            return self._sampler.draw(p, self._generators)
        token, q = drafts[:, fewest], drawn_from[fewest]
        if q is None:
            q = torch.zeros_like(p).scatter_(1, token[:, None], 1.0)
        residual = (p - q).clamp(min=0)
        residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, p)
        return torch.where(accepted > fewest, token, self._sampler.draw(residual, self._generators))
