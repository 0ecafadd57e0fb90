"""Stop conditions: stop tokens, compared on the device, and stop strings, searched in the decoded text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modular_gpt.core.stream_decoder import SettlingDecoder, StreamDecoder

_STEPS_BETWEEN_CHECKS = 16  # of whether all rows have stopped, on devices with which reading the result synchronises


class StopStringStreamer:
    """Decodes one row and releases text as soon as it cannot belong to a stop string."""

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        """prompt: ids before the text, whose last ones may begin a character that the text completes"""
        self._decoder = decoder
        self._stops = stops
        self._held = ""
        self.text = ""
        self.stopped = False  # by a stop string
        self._over = False
        for id in prompt:
            decoder.push(id)
        if isinstance(decoder, SettlingDecoder):
            decoder.settle()

    def push(self, id: int) -> str:
        """Add a token and return the text that can now be released."""
        return "" if self._over else self._release(self._decoder.push(id), last=False)

    def finish(self) -> str:
        """Return the text that was held back; called when no more tokens follow."""
        return "" if self._over else self._release(self._decoder.flush(), last=True)

    def _release(self, new: str, last: bool) -> str:
        self._held += new
        ends = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        self.stopped = bool(ends)
        self._over = self.stopped or last
        until = min(ends) if ends else len(self._held) - (0 if last else self._possible_stop_length())
        released, self._held = self._held[:until], self._held[until:]
        self.text += released
        return released

    def _possible_stop_length(self) -> int:
        """Number of held characters at the end that may begin a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class StoppingState:
    """Tracks which rows have stopped, their lengths, and the reason.

    stopped: (B,) whether a row has stopped
    lengths: (B,) number of new tokens of each row, including the one that stopped it
    by_token: (B,) whether a stop token was the reason
    transcripts: the decoder of each row; empty if texts are not decoded
    """

    def __init__(self, tokens: Sequence[int], rows: int, device: torch.device) -> None:
        self._tokens = torch.tensor(list(tokens), dtype=torch.long, device=device)
        self._every = 1 if device.type == "cpu" else _STEPS_BETWEEN_CHECKS
        self._steps = 0
        self.transcripts: list[StopStringStreamer] = []
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=device)
        self.by_token = torch.zeros(rows, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)

    def update(self, tokens: Tensor, last: bool) -> list[str]:
        """Add one token (B,) to each row and return each row's new text; ``last``: no more tokens follow."""
        self._steps += 1
        self.lengths = self.lengths + ~self.stopped
        if len(self._tokens):
            self.by_token = self.by_token | (torch.isin(tokens, self._tokens) & ~self.stopped)
            self.stopped = self.stopped | self.by_token
        if not self.transcripts:
            return []
        ended = self.by_token.tolist()
        new_texts = []
        for transcript, token, end in zip(self.transcripts, tokens.tolist(), ended, strict=True):
            new_text = "" if end else transcript.push(token)
            new_texts.append(new_text + (transcript.finish() if end or last else ""))
        by_text = torch.tensor([transcript.stopped for transcript in self.transcripts])
        self.stopped = self.stopped | by_text.to(self.stopped.device)
        return new_texts

    def all(self) -> bool:
        """Whether all rows have stopped.

        It is checked at every step on a CPU and with transcripts, for which the host reads each token anyway, and else
        at every 16th step.
        """
        if not len(self._tokens) and not self.transcripts:
            return False
        if not self.transcripts and self._steps % self._every:
            return False
        return bool(self.stopped.all())
