"""Evaluation of a GPTModel with lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

This module requires the extra ``eval``.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from modular_gpt.core.errors import ConfigError, DataError, first_line, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.answers import generate_answers, greedy_config
from modular_gpt.evaluation.likelihood import LikelihoodRequest, by_length, likelihoods
from modular_gpt.generation import GenerationConfig
from modular_gpt.model import GPTModel

Request = tuple[tuple[str, str], list[int], list[int]]  # (context, continuation), ids of both
_MAX_GEN_TOKS = 256  # if a task does not set max_gen_toks
_SAMPLING = ("temperature", "top_p", "top_k")
_GENERATION_KWARGS = ("until", "max_gen_toks", "do_sample", *_SAMPLING)


class HarnessModel(TemplateLM):
    """A GPTModel and its tokenizer as a model of the harness.

    Texts longer than the context are truncated on the left, as by the models of the harness.
    """

    def __init__(self, model: GPTModel, tokenizer: Tokenizer, batch_size: int = 8) -> None:
        super().__init__()
        self.gpt = model.eval()
        self.gpt_tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length = model.config.context_length
        self._device = model.embedding.weight.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document; a line feed if the tokenizer has none."""
        if self.gpt_tokenizer.eos_id is not None:
            return self.gpt_tokenizer.eos_id
        try:
            return self.gpt_tokenizer.encode("\n")[0]
        except (DataError, IndexError):
            return 0

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: ``bos_id``, or ``eot_token_id`` if there is none."""
        return self.eot_token_id if self.gpt_tokenizer.bos_id is None else self.gpt_tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Encode a string, without ``bos_id`` unless ``add_special_tokens`` is true."""
        ids = self.gpt_tokenizer.encode(string)
        return self.gpt_tokenizer.with_bos(ids) if add_special_tokens else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode a context, which begins with ``bos_id`` if the tokenizer has one, and its continuation."""
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        return self.gpt_tokenizer.with_bos(context_ids), continuation_ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether greedy decoding produces it."""
        results: dict[int, tuple[float, bool]] = {}
        for batch in by_length([len(context) + len(ids) for _, context, ids in requests], self.batch_size):
            for index, result in zip(batch, self._score([requests[index] for index in batch]), strict=True):
                results[index] = result
                self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
        return [results[index] for index in range(len(requests))]

    def _score(self, requests: Sequence[Request]) -> Iterator[tuple[float, bool]]:
        """Score a batch.

        Raises:
            DataError: a continuation is longer than the model's context.
        """
        batch = [
            LikelihoodRequest(context, ids, f"the continuation {text[:30]!r}") for (_, text), context, ids in requests
        ]
        for request in batch:
            if len(request.ids) > self.max_length:
                raise DataError(
                    f"{request.name} has {len(request.ids)} tokens, more than the model's context of"
                    f" {self.max_length}: use a model with a longer context, or leave out the task"
                )
        yield from likelihoods(self.gpt, batch)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, from disjoint windows of the context length."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs: list[Request] = [(("", text), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate the continuation of each context, up to a stop string, the end of the text or the token limit."""
        results: dict[int, str] = {}
        indexed = [(index, *request.args) for index, request in enumerate(requests)]
        indexed.sort(key=lambda request: str(request[2]))
        for _, same_kwargs in groupby(indexed, key=lambda request: str(request[2])):
            group = list(same_kwargs)
            settings = self._generation_config(group[0][2])
            encoded = [self.tok_encode(context, add_special_tokens=True) for _, context, _ in group]
            prompts = [ids or [self.eot_token_id] for ids in encoded]
            answers = generate_answers(self.gpt, self.gpt_tokenizer, prompts, settings, self.batch_size)
            for (index, context, kwargs), answer in zip(group, answers, strict=True):
                results[index] = answer
                self.cache_hook.add_partial("generate_until", (context, kwargs), answer)
        return [results[index] for index in range(len(requests))]

    def _generation_config(self, kwargs: PlainMapping) -> GenerationConfig:
        """Convert the ``generation_kwargs`` of a task.

        Raises:
            ConfigError: one of them is not supported.
        """
        for name in kwargs:
            if name not in _GENERATION_KWARGS:
                raise ConfigError(f"the task's generation_kwargs: {unknown('setting', name, _GENERATION_KWARGS)}")
        until = kwargs.get("until") or []
        sample = bool(kwargs.get("do_sample")) and kwargs.get("temperature") != 0
        return greedy_config(
            self.gpt,
            self.gpt_tokenizer,
            int(kwargs.get("max_gen_toks", _MAX_GEN_TOKS)),
            stop=[until] if isinstance(until, str) else [string for string in until if string],
            greedy=not sample,
            **({name: kwargs[name] for name in _SAMPLING if name in kwargs} if sample else {}),
        )


def run_tasks(
    model: GPTModel,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, PlainDict]:
    """Evaluate a model on tasks of the harness. Returns the metrics of each task by their names in the harness.

    The name of a metric, such as ``acc,none``, includes the filter that is applied to the answers.

    tasks: names of tasks, or paths of yaml files that define a task each
    include: folder with further yaml files
    fewshot: number of solved examples before each question; None: the task's default
    limit: maximum number of questions per task; None: all

    Raises:
        ConfigError: there is no such task, or it uses a setting that is not supported.
        DataError: the data of a task cannot be loaded, or a continuation is longer than the context.
        NonFiniteError: the logits are not finite.
    """
    names, manager = _find_tasks(tasks, include)
    try:
        results = simple_evaluate(
            HarnessModel(model, tokenizer, batch_size),
            tasks=names,
            num_fewshot=fewshot,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except (OSError, ConnectionError) as error:
        data = f"the data of {', '.join(names)} ({first_line(error)})"
        raise DataError(f"cannot load {data}; connect to the network once to download it") from error
    assert results is not None, "the harness returns None only on other ranks of a distributed run"
    return {name: dict(metrics) for name, metrics in results["results"].items()}


def _find_tasks(tasks: Sequence[str], include: str | Path | None) -> tuple[list[str], TaskManager]:
    """The names of the tasks, and an index of the harness that contains them.

    Raises:
        ConfigError: there is no such task, or a yaml file cannot be read.
    """
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    names = [_task_name(Path(task)) if Path(task) in files else task for task in tasks]
    folders = [str(path.parent) for path in files] + ([] if include is None else [str(include)])
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"the harness has no task {name!r}{hint} (the path of a yaml file is also accepted)")
    return names, manager


def _task_name(path: Path) -> str:
    """The name in a task's yaml file.

    The file is searched as text, since the harness's yaml loader imports the code that a file refers to.

    Raises:
        ConfigError: the file cannot be read, or defines no task.
    """
    try:
        match = re.search(r"^task:\s*[\"']?([^\s\"'#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the task '{path}' ({error}): give another file") from error
    if match is None:
        raise ConfigError(f"'{path}' has no line 'task: <name>', so it defines no task: give another file")
    return match[1]
