"""Evaluation between steps: the loss on the validation text, and a text that the model generates."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError, NonFiniteError, first_line
from modular_gpt.data import Batch, PreparedData, Tokenizer
from modular_gpt.distributed import Parallel
from modular_gpt.evaluation import RecordOptions, answer_questions, score_answers
from modular_gpt.runtime.device import autocast
from modular_gpt.runtime.signals import GracefulShutdown
from modular_gpt.training.config import EVAL_WINDOWS, TrainerConfig
from modular_gpt.training.objectives import Loss

PROMPT_TOKENS = 16  # of the validation text, as the prompt of samples where none is given

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


class Validation:
    """Evaluates a model that is being trained, and leaves it in training mode."""

    def __init__(
        self,
        objective: Loss,
        data: PreparedData,
        tokenizer: Tokenizer | None,
        config: TrainerConfig,
        seed: int,
        stop: GracefulShutdown,
        parallel: Parallel,
    ) -> None:
        """
        seed: seed of the samples
        stop: its signal ends an evaluation early
        parallel: the strategy that divides batches among processes
        """
        self.objective, self.forward = objective, objective.forward
        self.data, self.tokenizer, self.config = data, tokenizer, config
        self.seed, self.stop, self.parallel = seed, stop, parallel
        self.block = self.forward.model.config.context_length
        self.rows = config.batch_size // config.gradient_accumulation  # of a batch, all processes together
        self.sample_failed = False
        self.accuracy: float | None = None  # of the last ``loss``, where the data measures it
        self.questions = data.questions(config.eval_generate) if config.eval_generate else []
        if config.eval_generate and not self.questions:
            raise ConfigError("trainer.eval_generate asks validation records: use data=records, or leave it out")
        if config.sample_tokens:
            self.prompt()  # characters that the tokenizer does not know are refused before training

    @torch.no_grad()
    def loss(self, batches: int, progress: Progress | None = None) -> float | None:
        """The mean loss (nats per token, or per pair) on fixed rows of the validation data; None after a signal.

        Sets ``accuracy`` to that of the same rows.

        batches: number of batches of ``EVAL_WINDOWS`` windows; 0: all validation data
        progress: called with the number of batches done and the number of all batches
        """
        losses, hits, counts = [], [], []
        with self._evaluating():
            for batch in self.batches(batches):
                if self.stop.requested():
                    return None
                loss, accuracy = self.objective.evaluate(batch, self.data.measures_accuracy)
                losses.append(loss)
                hits += [] if accuracy is None else [accuracy.float()]
                counts.append(self.objective.count(batch[1]))
                if progress is not None:
                    progress(len(losses), self.num_batches(batches))
        self.accuracy = self._mean(hits, counts) if hits else None
        return self._mean(losses, counts)

    def _mean(self, means: list[Tensor], counts: list[int]) -> float:
        """The mean over the targets of all processes, from the mean and the number of targets of each batch."""
        total = math.fsum(mean * n for mean, n in zip(torch.stack(means).tolist(), counts, strict=True) if n)
        return self.parallel.mean(total, sum(counts))

    def num_batches(self, batches: int) -> int:
        """The number of batches, of ``rows`` windows each, that ``self.batches(batches)`` yields."""
        windows = batches * EVAL_WINDOWS or self.data.evaluation_windows(self.block)
        return math.ceil(windows / self.rows)

    def batches(self, batches: int) -> Iterator[Batch]:
        """Inputs and targets, each (rows of this process, context_length): fixed windows, or all validation data.

        The number of windows depends on ``batches`` alone, so that the loss does not depend on the batch size.
        """
        rank, world = self.parallel.data_rank, self.parallel.data_world
        return self.data.evaluation(self.block, self.rows, batches * EVAL_WINDOWS, rank, world)

    def sample(self) -> str | None:
        """A text that the model generates, with the same seed at each call; None in processes that generate none.

        A failure never ends the training: it is logged once, and the sample is a line with the error.
        """
        tokenizer = self._tokenizer()
        model = self.parallel.model_to_generate(self.forward.model)  # all processes take part
        if model is None:
            return None
        try:
            with self._evaluating(), autocast(self.forward.precision, self.forward.device):
                out = model.generate(
                    torch.tensor([self.prompt()], device=self.forward.device),
                    self.config.sample_tokens,
                    temperature=self.config.sample_temperature,
                    seed=self.seed,
                    overflow="window",
                    stop_tokens=tokenizer.eos_ids if self.data.has_prompts else [],
                    suppress_tokens=tokenizer.unused_ids(model.config.vocab_size),
                )
            skipped = int(out[0, 0] == tokenizer.bos_id)
            text = tokenizer.decode(out[0, skipped:], errors="ignore")
            return self._until_end(text, tokenizer.decode(self.prompt()[skipped:], errors="ignore"))
        except Exception as error:
            self._warn("no sample could be generated", error)
            return f"(no sample: {first_line(error)})"

    def answers(self) -> dict[str, float]:
        """Metrics of greedy answers to ``questions``, of at most as many tokens as the longest expected answer.

        Empty without questions and in processes that generate nothing. A failure never ends the training: it is logged
        once.
        """
        if not self.questions:
            return {}
        model = self.parallel.model_to_generate(self.forward.model)  # all processes take part
        if model is None:
            return {}
        options = RecordOptions(self.rows)
        try:
            with self._evaluating(), autocast(self.forward.precision, self.forward.device):
                answers = answer_questions(model, self._tokenizer(), self.questions, options)
            return score_answers([question.record.answer for question in self.questions], answers)
        except Exception as error:
            self._warn("no record could be answered", error)
            return {}

    def _warn(self, failed: str, error: Exception) -> None:
        """Log once that something could not be generated, unless the logits were not finite: training reports that."""
        if not (self.sample_failed or isinstance(error, NonFiniteError)):
            log.warning("%s (%s); the training continues", failed, first_line(error))
        self.sample_failed = True

    def _until_end(self, text: str, prompt: str) -> str:
        """Cut a sample at the text that ends an answer, if the data has such a text."""
        end = self.data.answer_end
        if not end or self.config.sample_prompt or not text.startswith(prompt):
            return text
        return prompt + text[len(prompt) :].partition(end)[0]

    def prompt(self) -> list[int]:
        """Ids of the prompt of samples, no longer than the context, with ``bos_id`` first if the tokenizer has one.

        Raises:
            DataError: ``sample_prompt`` has characters that the tokenizer does not know.
        """
        if self.config.sample_prompt:
            ids = self._tokenizer().encode(self.config.sample_prompt)
        else:
            ids = self.data.prompt(self.block if self.data.has_prompts else PROMPT_TOKENS)
        bos = self._tokenizer().with_bos([])
        return [*bos, *ids[-max(1, self.block - len(bos)) :]]

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ConfigError("samples are text: give a tokenizer, or leave out sample_tokens")
        return self.tokenizer

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.forward.model.eval()
        try:
            yield
        finally:
            self.forward.model.train()
