"""The training loop. Read ``fit`` first, then ``update``: nothing else changes a model.

A step is a function of the weights, the optimizer's state, the seed and the number of the step: the windows that it
reads (``BatchSource``), its learning rate (``Schedule``) and its dropout (``micro_batches``). So a run that was
interrupted anywhere resumes from its last checkpoint and ends with the same weights.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.core.errors import UserError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data import Batch, PreparedData, Tokenizer
from modular_gpt.data.shuffle import key_of
from modular_gpt.distributed.dtensor import clip_gradients, total_norm
from modular_gpt.model import GPTModel
from modular_gpt.optim import Optimizer, build_schedule
from modular_gpt.runtime.device import seed_generators
from modular_gpt.runtime.signals import GracefulShutdown
from modular_gpt.training.compile import compiles
from modular_gpt.training.config import RunConfig
from modular_gpt.training.ema import WeightAverage
from modular_gpt.training.forward import Forward, Placement
from modular_gpt.training.lora import Adapters
from modular_gpt.training.metrics import Entry
from modular_gpt.training.nonfinite import find_first_nonfinite
from modular_gpt.training.objectives import Loss, check_objective
from modular_gpt.training.recorder import Averages, NullRecorder, Recorder
from modular_gpt.training.validation import Validation

STEP_SAVED = "this step is finished and saved"
MAX_SKIPPED = 10  # updates skipped in a row before training ends with an error

Save = Callable[[bool], None]  # the argument: whether a failure to write the checkpoint ends the training

log = logging.getLogger(__name__)


def nothing() -> None:
    """Do nothing."""


@dataclass
class Progress:
    """The progress of training, which resuming needs besides weights and optimizer state.

    step: number of updates done
    evaluated: step of the last evaluation
    best_loss, best_step, best_accuracy: of the best evaluation; the accuracy is None where the data measures none
    seconds: time spent in all sessions together
    skipped: number of updates skipped in a row up to this step because the gradient was not finite
    skipped_in_all: number of all updates skipped
    """

    step: int = 0
    evaluated: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    best_accuracy: float | None = None
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_all: int = 0


class Trainer:
    """Trains a model on prepared data."""

    def __init__(
        self,
        model: GPTModel,
        optimizer: Optimizer,
        data: PreparedData,
        tokenizer: Tokenizer | None,
        run: RunConfig,
        placement: Placement,
        adapters: Adapters | None = None,
    ) -> None:
        """
        model: on its device, as ``placement.parallel`` shards it
        tokenizer: None for data without one, for which no sample is generated
        adapters: low-rank adapters of the model, which are trained instead of its weights
        """
        config, parallel = run.trainer, placement.parallel
        self.model, self.optimizer, self.adapters = model, optimizer, adapters
        self.data, self.tokenizer, self.config, self.seed = data, tokenizer, config, run.seed
        self.precision, self.parallel = placement.precision, parallel
        self.schedule = build_schedule(run.schedule, config.max_steps)
        self.device = next(model.parameters()).device
        self.block = model.config.context_length
        self.batches = data.batches(self.block, config.batch_size, run.seed, config.order)
        self.row_tokens = data.row_tokens or self.block
        data.check_evaluation(self.block, config.eval_batches)
        if config.activation_checkpointing:
            model.checkpoint_activations(config.activation_checkpointing)
        objective = check_objective(config.objective, data)
        compile, compile_reason = compiles(config, model.config, self.device, parallel.processes.world)
        compile, compile_reason = (compile, compile_reason) if objective.compiles else (False, "")
        self.reasons = {"precision": placement.reason, "compile": compile_reason}  # of what ``auto`` decided
        self.forward = Forward(model, self.precision, compile, parallel, optional=config.compile == "auto")
        self.objective = Loss(objective, config, self.forward, adapters)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.progress = Progress()
        self.averages = Averages()
        self.cause, self.cause_logged = "", False  # of the last skipped updates; whether it was logged since a good one
        self.stop = GracefulShutdown(parallel.processes.all_reduce_max, parallel.processes.is_main)
        self.ema = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.validation = Validation(self.objective, data, tokenizer, config, run.seed, self.stop, parallel)

    @property
    def order(self) -> PlainDict:
        """The settings that decide the order of samples and the objective, which cannot change within a run."""
        config = self.config
        return {
            "seed": self.seed,
            "trainer.batch_size": config.batch_size,
            "trainer.order": config.order,
            "model.context_length": self.block,
            **self.objective.fixed_settings,
        }

    def fit(
        self,
        recorder: Recorder | NullRecorder,
        save: Save,
        promise: str = STEP_SAVED,
        poll: Callable[[], None] = nothing,
    ) -> bool:
        """Train to the last step, or until patience or time runs out. Returns False if a signal stopped it early.

        save: called with whether the checkpoint is required, also at the end and after a signal; poll: after each step
        promise: a clause about the state after a signal, which is printed at the signal
        """
        config, progress = self.config, self.progress
        self.model.train()
        self.since, self.logged, self.out_of_time = time.perf_counter(), progress.step, False
        # the first step waits for the compiler; a signal may end that wait at once, since nothing is lost
        self.compiling = self.stop.nothing_to_save = self.forward.compiled
        with self.stop.catch(promise):
            while not self.stop.requested():
                last = progress.step == config.max_steps or self.out_of_time
                if self.evaluation_due(last) and progress.evaluated != progress.step:
                    with self.off_the_clock():
                        self.evaluate_and_report(recorder)
                    if self.stop.requested():
                        break
                finished = last or self.out_of_patience()
                if self.save_due() or finished:
                    with self.off_the_clock():
                        save(finished)
                if finished:
                    return True
                self.step()
                poll()
                recorder.step()
                self.out_of_time = self.time_is_up()
                if progress.step % config.log_interval == 0 or progress.step == config.max_steps or self.out_of_time:
                    recorder.training(self.collect_metrics())
            save(True)
        return False

    def step(self) -> None:
        """Run one step. The time of a step that compiles counts as spent, but not in the speed."""
        if self.compiling:
            with self.off_the_clock():
                self.update()
            self.logged += 1
            self.compiling = self.stop.nothing_to_save = False
        else:
            self.update()
        self.progress.step += 1

    def time_is_up(self) -> bool:
        """Whether ``max_time`` is spent. Collective: all processes get the same answer."""
        limit = self.config.time_limit
        if math.isinf(limit):
            return False
        spent = self.progress.seconds + time.perf_counter() - self.since
        return self.parallel.processes.all_reduce_max(int(spent >= limit)) > 0

    def out_of_patience(self) -> bool:
        """Whether the last ``patience`` evaluations gave no better loss than an earlier one."""
        patience, progress = self.config.patience, self.progress
        waited = progress.evaluated - progress.best_step
        return patience is not None and progress.best_step > 0 and waited >= patience * self.config.eval_interval

    def evaluation_due(self, last: bool) -> bool:
        """Whether to evaluate at this step: at each interval and after the last, where there is validation data."""
        return self.data.validates and (last or self.progress.step % self.config.eval_interval == 0)

    def save_due(self) -> bool:
        """Whether to write a checkpoint at this step: at each interval, for the best loss, and as a milestone."""
        config, progress = self.config, self.progress
        due = progress.step % (config.save_interval or config.eval_interval) == 0
        milestone = config.keep_every is not None and progress.step % config.keep_every == 0
        return progress.step > 0 and (due or milestone or progress.best_step == progress.step)

    def update(self) -> None:
        """One step: gradients of the whole batch, micro-batch by micro-batch, then one update of the weights."""
        losses: dict[str, Tensor] = {}
        for batch, share in self.micro_batches():
            output = self.objective.train(batch)
            self.scaler.scale(output.loss * (share * self.parallel.data_world)).backward()  # means over processes
            for name, value in {"loss": output.loss, **(output.losses if len(output.losses) > 1 else {})}.items():
                losses[name] = losses.get(name, 0) + value.detach() * share
        self.parallel.finish_gradients()
        self.apply_gradients(self.parallel.sum(losses))

    def micro_batches(self) -> Iterator[tuple[Batch, float]]:
        """Each micro-batch (the rows of this process), and the fraction of the batch's targets, or pairs, in it.

        Before each one the generators of dropout are seeded by the run's seed, the step, the micro-batch and the rank.
        """
        batch = self.batches.batch(self.progress.step)
        count, parallel = self.config.gradient_accumulation, self.parallel
        counted = self.objective.count(batch[1])
        for number, rows in enumerate(zip(*(parallel.rows(tensor, count) for tensor in batch), strict=True)):
            seed_generators(int(key_of(self.seed, self.progress.step, number, parallel.data_rank)), self.device)
            parallel.set_grad_sync(last=number == count - 1)
            yield rows, self.objective.count(rows[1]) / max(1, counted)

    def apply_gradients(self, losses: dict[str, Tensor]) -> None:
        """Clip the gradients and update the weights; skip the update if a gradient is not finite."""
        config, parameters = self.config, self.optimizer.parameters()
        for optimizer in self.optimizer.optimizers:
            self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = total_norm(gradients)
        if bool((norm + 0 * losses["loss"]).isfinite()):
            if config.gradient_clip:
                clip_gradients(parameters, config.gradient_clip, norm)
            self.optimizer.step(self.schedule.factor(self.progress.step))
            self.model.after_optimizer_step()
            if self.ema is not None:
                self.ema.update(self.progress.step)
            self.averages.add({**losses, "gradient_norm": norm})
            self.progress.skipped, self.cause_logged = 0, False
        else:
            self.skip_update()
            self.model.after_skipped_step()
        self.scaler.update()
        self.optimizer.zero_grad()

    @contextmanager
    def eval_weights(self) -> Iterator[None]:
        """Context manager: the model holds the weights to evaluate and save (averaged, and with adapters merged)."""
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.shown())
            if self.adapters is not None:
                stack.enter_context(self.adapters.merged())
            yield

    def weights(self) -> dict[str, Tensor]:
        """The ``state_dict`` of a model without adapters; if it is sharded, the shards of this process."""
        return self.model.state_dict() if self.adapters is None else self.adapters.weights()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load weights that ``weights`` returned."""
        self.parallel.load(self.model, weights if self.adapters is None else self.adapters.complete(weights))

    def skip_update(self) -> None:
        """Count a skipped update and log its cause, once for updates skipped in a row.

        In fp16 skipped updates are usual, since the scaler halves its loss scale at each; they are logged and lead to
        an error only once the scale is below 1.

        Raises:
            UserError: ``MAX_SKIPPED`` updates in a row were skipped.
        """
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_all += 1
        searching = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if self.parallel.processes.all_reduce_max(int(searching)):
            return
        if not self.cause_logged:
            self.cause_logged = True
            self.cause = find_first_nonfinite(self.model, self.repeat_forward, self.parallel)
            log.warning("step %s: %s, so this update is skipped", progress.step, self.cause)
        if progress.skipped >= MAX_SKIPPED:
            fp16 = ", trainer.precision=bf16" if self.scaler.is_enabled() else ""
            raise UserError(
                f"training broke down: no finite gradient in the last {progress.skipped} steps, up to step"
                f" {progress.step} ({self.cause}); use a lower optim.learning_rate{fp16} or a longer schedule.warmup"
            )

    def repeat_forward(self) -> None:
        """Compute the forward passes of this step again."""
        for batch, _ in self.micro_batches():
            self.forward.plain(*(tensor.flatten(0, -2) for tensor in batch))

    def collect_metrics(self) -> Entry:
        """The metrics of the steps since the last call."""
        steps = self.progress.step - self.logged
        self.logged = self.progress.step
        means = self.averages.read()  # waits for the device, so that the clock below is right
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.progress.seconds += seconds
        per_step = self.config.batch_size * self.row_tokens
        return {
            "step": self.progress.step,
            "tokens": self.progress.step * per_step,
            "seconds": self.progress.seconds,
            "learning_rate": self.optimizer.present_rate,
            "tokens_per_second": steps * per_step / seconds,
            "skipped": self.progress.skipped_in_all,
            **means,
        }

    def evaluate_and_report(self, recorder: Recorder | NullRecorder) -> None:
        """Compute the validation loss, generate a sample, and record whether this is the best model so far. Collective.

        The other processes wait, without a timeout, until the first one has sampled and recorded.
        """
        progress = self.progress
        with self.eval_weights():
            loss = self.validation.loss(self.config.eval_batches)
            if loss is None:
                return
            text = self.validation.sample() if self.config.sample_tokens else None
            answers = self.validation.answers()
        progress.evaluated = progress.step
        best = loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
            progress.best_accuracy = self.validation.accuracy
        entry = {"step": progress.step, "validation_loss": loss}
        measured = {"bits_per_byte": self.data.bits_per_byte(loss), "validation_accuracy": self.validation.accuracy}
        entry |= {name: value for name, value in measured.items() if value is not None} | answers
        recorder.evaluation(entry, text, best)
        self.parallel.processes.wait_for_main()

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Context manager: the block's time counts as spent, but not in the speed of training."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.since += seconds
        self.progress.seconds += seconds
