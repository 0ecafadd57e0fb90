"""The training loop. Read ``fit`` first, then ``update``: that is all that happens to a model.

Everything that a step does is a function of the weights, the seed and the step's number: which windows it reads
(``BatchSource``), its learning rate (``Schedule``) and its dropout (``micro_batches``). So a run that was interrupted
anywhere goes on from its last checkpoint to the very same end.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modular_gpt.core.errors import UserError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import BatchSource, PreparedData, Tokenizer
from modular_gpt.data.shuffle import key_of
from modular_gpt.distributed import Parallel, build_parallel
from modular_gpt.distributed.dtensor import clip, total_norm
from modular_gpt.model import GPTModel
from modular_gpt.optim import Optimizer, Schedule
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.runtime.signals import GracefulShutdown
from modular_gpt.training.compile import compiles
from modular_gpt.training.config import TrainerConfig
from modular_gpt.training.ema import WeightAverage
from modular_gpt.training.forward import Forward
from modular_gpt.training.lora import Adapters
from modular_gpt.training.nonfinite import find_first_nonfinite
from modular_gpt.training.recorder import Averages, Entry, Recorder, Silent
from modular_gpt.training.validation import Validation

MOST_SKIPPED = 10  # updates left out one after the other before the training gives up

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training has come; with weights and optimizer it is all that resuming needs.

    step: updates done; evaluated: the step of the last evaluation; seconds: spent so far, in all sessions together
    best_loss, best_step: of the best evaluation
    skipped: updates left out, up to this one in a row, because the gradient was not finite; skipped_in_all: ever
    """

    step: int = 0
    evaluated: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_all: int = 0


class Trainer:
    """Trains a model on prepared data."""

    def __init__(
        self,
        model: GPTModel,
        optimizer: Optimizer,
        schedule: Schedule,
        data: PreparedData,
        tokenizer: Tokenizer,
        config: TrainerConfig,
        seed: int = 0,
        precision: str = "float32",
        parallel: Parallel | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.data, self.tokenizer, self.config, self.seed = data, tokenizer, config, seed
        self.precision, self.loss = precision, config.loss
        self.parallel = parallel or build_parallel("none", ProcessGroup())
        self.device = next(model.parameters()).device
        self.block = model.config.context_length
        self.batches = BatchSource(data.train, self.block, config.batch_size, seed, config.order)
        model.checkpoint_activations(config.activation_checkpointing)
        compile = compiles(config, model, self.device, self.parallel.processes.world)
        self.forward = Forward(model, precision, compile, self.parallel, optional=config.compile == "auto")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.progress = Progress()
        self.averages = Averages()
        self.cause = ""  # of the last update that was left out
        self.stop = GracefulShutdown(self.parallel.processes.highest, self.parallel.processes.is_main)
        self.adapters = adapters
        self.ema = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.validation = Validation(self.forward, data, tokenizer, config, seed, self.stop, self.parallel)

    @property
    def order(self) -> dict[str, Any]:
        """Settings on which the order of samples depends, so that they stay the same for a whole run."""
        config = self.config
        return {
            "seed": self.seed,
            "trainer.batch_size": config.batch_size,
            "trainer.order": config.order,
            "model.context_length": self.block,
        }

    def fit(self, recorder: Recorder | Silent, save: Callable[[], None]) -> bool:
        """Train to the last step, or while there is patience -> True; or until ``stop`` is asked -> False.

        Either way ``save`` has been called at the end.
        """
        config, progress = self.config, self.progress
        self.model.train()
        self.since, self.logged = time.perf_counter(), progress.step
        # the first step waits for the compiler, and nothing is lost where a signal ends it
        compiling = self.stop.nothing_to_save = self.forward.compiled
        with self.stop.catch():
            while not self.stop.requested():
                last = progress.step == config.max_steps
                evaluation_due = progress.step % config.eval_interval == 0 or last
                if evaluation_due and progress.evaluated != progress.step:
                    with self.off_the_clock():
                        self.evaluate_and_report(recorder)
                    if self.stop.requested():
                        break
                finished = last or self.out_of_patience()
                if self.save_due() or finished:
                    with self.off_the_clock():
                        save()
                if finished:
                    return True
                if compiling:  # for which the first step waits: that takes time, and tells nothing of the speed
                    with self.off_the_clock():
                        self.update()
                    self.logged, compiling, self.stop.nothing_to_save = self.logged + 1, False, False
                else:
                    self.update()
                progress.step += 1
                recorder.step()
                if progress.step % config.log_interval == 0 or progress.step == config.max_steps:
                    recorder.training(self.collect_metrics())
            save()
        return False

    def out_of_patience(self) -> bool:
        """Whether the last evaluations, as many as ``patience`` says, were no better than one before them."""
        patience, progress = self.config.patience, self.progress
        waited = progress.evaluated - progress.best_step
        return patience is not None and progress.best_step > 0 and waited >= patience * self.config.eval_interval

    def save_due(self) -> bool:
        """Whether a checkpoint is to be written at this step."""
        progress = self.progress
        interval = self.config.save_interval or self.config.eval_interval
        best = progress.best_step == progress.step
        return progress.step > 0 and (best or progress.step % interval == 0)

    def update(self) -> None:
        """One step: gradients of the whole batch, micro-batch by micro-batch, then one update of the weights."""
        losses: dict[str, Tensor] = {}
        for x, y, share in self.micro_batches():
            output = self.forward(x, y, self.loss)
            self.scaler.scale(output.loss * (share * self.parallel.parts)).backward()  # means over processes
            for name, value in {"loss": output.loss, **(output.parts if len(output.parts) > 1 else {})}.items():
                losses[name] = losses.get(name, 0) + value.detach() * share
        self.apply_gradients(self.parallel.sum(losses))

    def micro_batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Inputs, targets and the share of the batch's targets that are in each micro-batch of this step.

        A process gets its rows of each. With them come random numbers for dropout of their own, a function of seed,
        step, micro-batch and process.
        """
        ids, targets = self.batches.batch(self.progress.step)
        pieces, parallel = self.config.gradient_accumulation, self.parallel
        counted = int((targets != IGNORED).sum())
        for number, (x, y) in enumerate(zip(parallel.rows(ids, pieces), parallel.rows(targets, pieces), strict=True)):
            torch.manual_seed(int(key_of(self.seed, self.progress.step, number, parallel.part)))
            parallel.set_grad_sync(last=number == pieces - 1)
            yield x, y, int((y != IGNORED).sum()) / max(1, counted)

    def apply_gradients(self, losses: dict[str, Tensor]) -> None:
        """Clip the gradients and update the weights; leave both alone where a gradient is not finite."""
        config, parameters = self.config, self.optimizer.parameters()
        for part in self.optimizer.parts:
            self.scaler.unscale_(part)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = total_norm(gradients)
        if bool((norm + 0 * losses["loss"]).isfinite()):
            if config.gradient_clip:
                clip(parameters, config.gradient_clip, norm)
            self.optimizer.step(self.schedule.factor(self.progress.step))
            self.model.after_optimizer_step()
            if self.ema is not None:
                self.ema.update(self.progress.step)
            self.averages.add({**losses, "gradient_norm": norm})
            self.progress.skipped = 0
        else:
            self.skip_update()
            self.model.after_skipped_step()
        self.scaler.update()
        self.optimizer.zero_grad()

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Inside, the model has the weights that are to be judged and saved: averaged, and with adapters merged."""
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.shown())
            if self.adapters is not None:
                stack.enter_context(self.adapters.merged())
            yield

    def weights(self) -> dict[str, Tensor]:
        """The model's, as one without adapters has them; where they are divided, the parts of this process."""
        return self.model.state_dict() if self.adapters is None else self.adapters.weights()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take up what ``weights`` gave."""
        self.parallel.load(self.model, weights if self.adapters is None else self.adapters.complete(weights))

    def skip_update(self) -> None:
        """Leave the weights as they are and say why; give up when that happens again and again."""
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_all += 1
        if self.scaler.is_enabled():
            return  # fp16: the scaler is looking for a factor that fits
        if progress.skipped == 1:
            self.cause = find_first_nonfinite(self.model, self.repeat_forward, self.parallel)
            log.warning("step %s: %s, so this update is left out", progress.step, self.cause)
        if progress.skipped == MOST_SKIPPED:
            raise UserError(
                f"training broke down: no finite gradient in the last {MOST_SKIPPED} steps, up to step {progress.step}"
                f" ({self.cause}); use a lower optim.learning_rate or a longer schedule.warmup"
            )

    def repeat_forward(self) -> None:
        """The forward passes of this step once more."""
        for x, y, _ in self.micro_batches():
            self.forward.plain(x, y)

    def collect_metrics(self) -> Entry:
        """What is recorded of the steps since it was last asked."""
        steps = self.progress.step - self.logged
        self.logged = self.progress.step
        means = self.averages.read()  # waits for the device, so that the clock below is right
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.progress.seconds += seconds
        per_step = self.config.batch_size * self.block
        return {
            "step": self.progress.step,
            "tokens": self.progress.step * per_step,
            "seconds": self.progress.seconds,
            "learning_rate": self.optimizer.present_rate,
            "tokens_per_second": steps * per_step / seconds,
            "skipped": self.progress.skipped_in_all,
            **means,
        }

    def evaluate_and_report(self, recorder: Recorder | Silent) -> None:
        """Measure the validation loss, generate a sample, and note whether this is the best model so far."""
        progress = self.progress
        with self.eval_weights():
            loss = self.validation.loss(self.config.eval_batches)
            if loss is None:
                return
            text = self.validation.sample() if self.config.sample_tokens else None
        progress.evaluated = progress.step
        best = loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
        entry = {
            "step": progress.step,
            "validation_loss": loss,
            "bits_per_byte": self.data.validation.bits_per_byte(loss),
        }
        recorder.evaluation(entry, text, best)

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Count the block's time as spent, but leave it out of the speed of training."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.since += seconds
        self.progress.seconds += seconds
