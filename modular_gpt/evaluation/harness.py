"""Evaluation of a GPTModel by lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

It needs the extra ``eval``.
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

from modular_gpt.core.errors import ConfigError, DataError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.answers import generate_answers, greedy_config
from modular_gpt.evaluation.likelihood import Continued, by_length, likelihoods
from modular_gpt.generation import GenerationConfig
from modular_gpt.model import GPTModel

Request = tuple[tuple[str, str], list[int], list[int]]  # (context, continuation), their ids
_NEW_TOKENS = 256  # generated where a task does not set max_gen_toks
_SAMPLING = ("temperature", "top_p", "top_k")
_GENERATION_KWARGS = ("until", "max_gen_toks", "do_sample", *_SAMPLING)


class HarnessModel(TemplateLM):
    """A GPTModel and its tokenizer behind the interface of the harness.

    Texts longer than the context lose their beginning, as in the harness's own models.
    """

    def __init__(self, model: GPTModel, tokenizer: Tokenizer, batch_size: int = 8) -> None:
        super().__init__()
        self.gpt = model.eval()
        self.texts = tokenizer
        self.batch_size = batch_size
        self.max_length = model.config.context_length
        self._device = model.embedding.weight.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document; where the tokenizer has none, a line end."""
        if self.texts.eos_id is not None:
            return self.texts.eos_id
        try:
            return self.texts.encode("\n")[0]
        except (DataError, IndexError):
            return 0

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes a text without a context: ``bos_id``, or else ``eot_token_id``."""
        return self.eot_token_id if self.texts.bos_id is None else self.texts.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """The ids of a string, without ``bos_id`` unless ``add_special_tokens`` is true."""
        ids = self.texts.encode(string)
        return self.texts.with_bos(ids) if add_special_tokens else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a context, with ``bos_id`` first if the tokenizer has one, and of its continuation."""
        before, after = super()._encode_pair(context, continuation)
        return self.texts.with_bos(before), after

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: object
    ) -> list[tuple[float, bool]]:
        """For each request: the log-probability of the continuation, and whether greedy decoding produces it."""
        found: dict[int, tuple[float, bool]] = {}
        for batch in by_length([len(context) + len(text) for _, context, text in requests], self.batch_size):
            for index, result in zip(batch, self._score([requests[index] for index in batch]), strict=True):
                found[index] = result
                self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
        return [found[index] for index in range(len(requests))]

    def _score(self, requests: Sequence[Request]) -> Iterator[tuple[float, bool]]:
        batch = [Continued(before, ids, f"the continuation {text[:30]!r}") for (_, text), before, ids in requests]
        for continued in batch:
            if len(continued.ids) > self.max_length:
                raise DataError(
                    f"{continued.name} has {len(continued.ids)} tokens, "
                    f"more than the model's context of {self.max_length}"
                )
        yield from likelihoods(self.gpt, batch)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows of the context length that score each token once."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs: list[Request] = [(("", text), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to a stop string, the end of the text or the token limit."""
        found: dict[int, str] = {}
        numbered = [(index, *request.args) for index, request in enumerate(requests)]
        numbered.sort(key=lambda request: str(request[2]))
        for _, equal in groupby(numbered, key=lambda request: str(request[2])):
            group = list(equal)
            settings = self._settings(group[0][2])
            encoded = [self.texts.with_bos(self.texts.encode(context)) for _, context, _ in group]
            prompts = [ids or [self.eot_token_id] for ids in encoded]
            answers = generate_answers(self.gpt, self.texts, prompts, settings, self.batch_size)
            for (index, context, kwargs), answer in zip(group, answers, strict=True):
                found[index] = answer
                self.cache_hook.add_partial("generate_until", (context, kwargs), answer)
        return [found[index] for index in range(len(requests))]

    def _settings(self, kwargs: PlainMapping) -> GenerationConfig:
        """The settings of generation for the ``generation_kwargs`` of a task.

        Raises:
            ConfigError: one of them is not supported.
        """
        for name in kwargs:
            if name not in _GENERATION_KWARGS:
                raise ConfigError(f"the task's generation_kwargs: {unknown('setting', name, _GENERATION_KWARGS)}")
        until = kwargs.get("until") or []
        sampled = bool(kwargs.get("do_sample")) and kwargs.get("temperature") != 0
        return greedy_config(
            self.gpt,
            self.texts,
            int(kwargs.get("max_gen_toks", _NEW_TOKENS)),
            stop=[until] if isinstance(until, str) else [string for string in until if string],
            greedy=not sampled,
            **({name: kwargs[name] for name in _SAMPLING if name in kwargs} if sampled else {}),
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

    A name is, for example, ``acc,none``: the metric and the filter applied to the answers.

    tasks: names of tasks, or paths of yaml files that define one
    include: folder with further yaml files; fewshot: solved examples before each question; limit: questions per task

    Raises:
        ConfigError: there is no such task, or it uses a setting that is not supported.
        DataError: the data of a task cannot be loaded.
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot load the data of {', '.join(names)} ({reason}); connect to the network once to download it"
        ) from error
    assert results is not None, "the harness returns None only on other ranks of a distributed run"
    return {name: dict(metrics) for name, metrics in results["results"].items()}


def _find_tasks(tasks: Sequence[str], include: str | Path | None) -> tuple[list[str], TaskManager]:
    """The names of the tasks, and the harness's index of all tasks with the yaml files that were given.

    Raises:
        ConfigError: there is no such task.
    """
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    names = [_task_name(Path(task)) if Path(task) in files else task for task in tasks]
    folders = [str(path.parent) for path in files] + ([] if include is None else [str(include)])
    manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"the harness has no task {name!r}{hint} (a path of a yaml file may be given too)")
    return names, manager


def _task_name(path: Path) -> str:
    """The name in a task's yaml file, found as text: loading the file could import what it names."""
    try:
        match = re.search(r"^task:\s*[\"']?([^\s\"'#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the task '{path}' ({error})") from error
    if match is None:
        raise ConfigError(f"'{path}' has no line 'task: <name>', so it describes no task")
    return match[1]
