"""Settings of mgpt-generate, and the continuation of one prompt, a file of prompts, or the default prompts."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TextIO

from modular_gpt.chat import Chat
from modular_gpt.checkpoint.resolve import Loaded, load_model, load_with_tokenizer
from modular_gpt.cli.chat_repl import ChatPrompter
from modular_gpt.cli.composition.compose import as_yaml, composed, plain
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import read_overrides
from modular_gpt.cli.composition.schema import Command, described, fields_of, names_of
from modular_gpt.cli.finite_weights import check_finite_weights
from modular_gpt.cli.repl import Conversation, shown_after, shown_answer
from modular_gpt.cli.text_writer import Writer
from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.validation import WEIGHT_TYPES, expand_home, from_mapping, one_of
from modular_gpt.deploy.cpu_packing import PACKINGS, packing_pays
from modular_gpt.generation import Continuation, GenerationConfig, SamplingSettings
from modular_gpt.generation.config import FORMER_NAMES, RANDOM, SEARCHES, FilterSettings
from modular_gpt.model import GPTModel
from modular_gpt.runtime.device import as_device, as_dtype, prepare_device

MAX_PROMPTS = 2**28  # bytes of a file of prompts
SUITE = ("def ", "import ", "The ", "Once upon a time", "\n")  # default prompts, if the tokenizer can encode them


@dataclass
class Task:
    """Settings of mgpt-generate besides those of generation.

    checkpoint: The model that generates: a run's directory, a checkpoint, a folder in Hugging Face's format, or a
        published name such as gpt2.
    tokenizer: The tokenizer to use instead of the model's own: a tokenizer.json, a folder with one, a run, or a name
        such as gpt2. By default (null) the model's own.
    prompt: The text to continue. Without prompt, prompts and interactive, a few short texts are continued.
    prompts: A file with one prompt per line, or one JSON object {"prompt": ...} per line where its name ends in .jsonl.
    batch_size: Number of prompts of the file to continue at once. By default (null) as many as memory allows, at most
        64.
    json: Print one JSON object per continuation instead of text.
    interactive: Read prompts from the keyboard, one after the other.
    chat: Treat prompts as messages that the model answers: auto uses the model's chat template, if it has one; plain,
        chatml, alpaca or the path of a .jinja file choose one; none continues texts. By default (null) auto with
        interactive=true, else none.
    system: The system message with which a conversation begins.
    special: Encode special tokens that are spelled in a prompt as such, instead of as text.
    draft: A smaller model with the same tokenizer that drafts tokens for strategy=speculative.
    device: The device to compute on: auto, cpu, cuda, cuda:1, mps or another name that PyTorch knows.
    dtype: Data type of the weights, float32 or bf16. By default (null) the one they were saved in.
    packing: Form of the weights of linear layers on a CPU: onednn reorders them for faster matrix products; int8 rounds
        them to 8 bits, with a scale for each output channel, which halves the bytes of bf16; none keeps the form of the
        checkpoint. By default (null) onednn where it is faster: not with compile, nor for a single text in float32 on
        an Intel CPU.
    pack: The former name of packing: true is onednn, false is none.
    """

    checkpoint: str = "runs/latest"
    tokenizer: str | None = None
    prompt: str | None = None
    prompts: str | None = None
    batch_size: int | None = None
    json: bool = False
    interactive: bool = False
    chat: str | None = None
    system: str | None = None
    special: bool = False
    draft: str | None = None
    device: str = "auto"
    dtype: str | None = None
    packing: str | None = None
    pack: bool | None = None

    def __post_init__(self) -> None:
        expand_home(self, "checkpoint", "prompts", "draft")
        given = [name for name in ("prompt", "prompts", "interactive") if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.json and self.interactive:
            raise ConfigError("json=true has no conversation: leave out interactive=true")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, or null to choose it by memory, got {self.batch_size}")
        if self.batch_size is not None and self.prompts is None:
            raise ConfigError(f"batch_size={self.batch_size} is for a file of prompts: give prompts=<file>, too")
        if self.system is not None and self.chat_name == "none":
            raise ConfigError("system= begins a conversation: add chat=auto, plain, chatml or alpaca")
        if self.dtype is not None:
            one_of(self.dtype, WEIGHT_TYPES, "dtype")
        if self.packing is not None:
            one_of(self.packing, tuple(PACKINGS), "packing")
            if self.pack is not None:
                raise ConfigError("pack is the former name of packing: leave it out")

    def packed(self, model: GPTModel, settings: GenerationConfig) -> GPTModel:
        """Pack the weights of ``model`` as ``packing`` or ``pack`` says, null resolved."""
        packing = self.packing
        if self.pack is not None:
            packing = "onednn" if self.pack else "none"
        elif packing is None:
            one_prompt = self.prompt is not None or self.interactive
            # of a search or of several prompts, there are two rows or more
            rows = settings.num_return_sequences if one_prompt and settings.strategy not in SEARCHES else 2
            packing = "onednn" if packing_pays(model, rows) and not settings.compile else "none"
        return PACKINGS[packing](model)

    @property
    def chat_name(self) -> str:
        """The value of ``chat``, null resolved."""
        if self.chat is not None:
            return self.chat
        return "auto" if self.interactive else "none"


_sampling = names_of(GenerationConfig)
GenerateSettings = make_dataclass(
    "GenerateSettings",
    [*fields_of(Task, names_of(Task)), *fields_of(GenerationConfig, _sampling)],
    namespace=described(Task, GenerationConfig, FilterSettings, SamplingSettings),
)
GENERATE = Command(
    name="generate", plain=GenerateSettings, former_names={**FORMER_NAMES, "num_samples": "num_return_sequences"}
)


def read_task(arguments: Sequence[str], where: list[Path]) -> tuple[Task, GenerationConfig, str]:
    """Read a command line: the task, the settings of generation, and all settings as YAML.

    Raises:
        ConfigError: a setting does not exist, or a value cannot work.
    """
    typed, hydra_overrides = read_overrides(GENERATE, arguments, where)
    with explained(GENERATE, where, arguments):
        config = composed(GENERATE, hydra_overrides, where)
        values = plain(config)
    task = from_mapping(Task, {name: values[name] for name in names_of(Task)}, "")
    sampling = {name: values[name] for name in _sampling}
    if sampling["strategy"] in SEARCHES or sampling["greedy"]:  # the temperature of generate.yaml is for sampling
        given = {override.key for override in typed}
        sampling = {name: value for name, value in sampling.items() if name not in RANDOM or name in given}
    settings = GenerationConfig.from_values(sampling)
    if task.interactive and settings.num_return_sequences > 1:
        raise ConfigError("a conversation has one answer to each prompt: leave out num_return_sequences")
    if settings.logprobs and not task.json:
        raise ConfigError("logprobs are printed with json=true only: add it, or leave logprobs out")
    return task, settings, as_yaml(config)


def open_writer(task: Task, settings: GenerationConfig) -> Writer:
    """Load the models of a task.

    Raises:
        UserError: a model is missing or damaged, or settings do not fit it.
    """
    device = as_device(task.device)
    prepare_device(threads=None)
    dtype = as_dtype(task.dtype)
    loaded = load_with_tokenizer(task.checkpoint, device, dtype, task.tokenizer)
    draft = None if task.draft is None else load_model(task.draft, dtype, device).model
    for model, name in ((loaded.model, task.checkpoint), (draft, task.draft)):
        if model is None or name is None:
            continue
        check_finite_weights(model, name)
        task.packed(model, settings)
    settings.check(loaded.model.config.vocab_size)
    return Writer(loaded, draft, _open_chat(task, loaded), task.special)


def _open_chat(task: Task, loaded: Loaded) -> Chat | None:
    """The conversation of a task; None where texts are continued.

    Raises:
        ConfigError: there is no such template, or a system message without a template.
        DataError: the template has no system message.
    """
    if task.chat_name == "none":
        return None
    if task.chat_name == "auto" and loaded.tokenizer.template is None:
        if task.system is not None:
            raise ConfigError("system= needs a chat template, and this model has none: choose one, such as chat=plain")
        if task.chat is not None:
            print("this model has no chat template, so its texts are continued (chat=none)", file=sys.stderr)
        return None
    return Chat(loaded.model, loaded.tokenizer, task.chat_name, system=task.system, special=task.special)


def write_texts(task: Task, settings: GenerationConfig, writer: Writer) -> None:
    """Continue the prompts of a task, print each text when it is complete, and print the throughput at the end."""
    prompts = _prompts(task, writer)
    ids = [_encoded(task, writer, number, prompt) for number, prompt in enumerate(prompts, 1)]
    if not task.json and len(ids) * settings.num_return_sequences == 1:
        writer.write(ids[0], settings, shown_after(prompts[0]) if writer.chat is None else shown_answer())
        print()
    else:
        _write_all(task, settings, writer, prompts, ids)
    print(f"[{writer.throughput}]", file=sys.stderr if task.json else sys.stdout)


def _encoded(task: Task, writer: Writer, number: int, prompt: str) -> list[int]:
    try:
        return writer.encode(prompt)
    except DataError as error:
        if task.prompts is None:
            raise
        raise DataError(f"prompt {number} of '{task.prompts}': {error}") from error


def _write_all(
    task: Task, settings: GenerationConfig, writer: Writer, prompts: Sequence[str], ids: Sequence[Sequence[int]]
) -> None:
    count = settings.num_return_sequences
    progress = Progress(len(prompts) * count, sys.stderr) if task.prompts is not None else None
    done = 0
    for index, sample, text in writer.write_all(ids, settings, task.batch_size):
        done += 1
        if progress is not None:
            progress.clear()
        prompt = prompts[index]
        shown = _as_json(index, prompt, sample, text) if task.json else _titled(writer, prompt, (sample, count), text)
        print(shown, flush=True)
        if progress is not None:
            progress.show(done, writer.throughput.rate)
    if progress is not None:
        progress.clear()
    if writer.interrupted:
        print(f"interrupted: {done} of {len(prompts) * count} texts, some of them cut short", file=sys.stderr)


def converse(arguments: Sequence[str], where: list[Path], settings: GenerationConfig, writer: Writer) -> None:
    """Answer prompts from the keyboard; a line such as ``top_k=40`` changes a setting."""
    given = list(arguments)

    def change(line: str) -> GenerationConfig | None:
        name = line.partition("=")[0]
        if GENERATE.former_names.get(name, name) not in _sampling or "=" not in line:
            return None
        changed = read_task([*given, line], where)[1]
        changed.check(writer.model.config.vocab_size)
        given.append(line)
        return changed

    if writer.chat is None:
        Conversation(writer, settings, change).run()
    else:
        ChatPrompter(writer, writer.chat, settings, change).run()


def _prompts(task: Task, writer: Writer) -> list[str]:
    if task.prompt is not None:
        return [task.prompt]
    if task.prompts is not None:
        return read_prompts(Path(task.prompts))
    encodable = [prompt for prompt in SUITE if writer.can_encode(prompt)]
    if not encodable:
        raise ConfigError("this model's tokenizer can encode none of the default prompts: give prompt=...")
    return encodable


def read_prompts(path: Path) -> list[str]:
    r"""The prompts of a file, one on each line; empty lines are left out.

    A line ends with \\n or \\r\\n; other characters that Unicode counts as line ends stay in the prompt. A byte order
    mark at the beginning is left out.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a line is not valid; the message has its number.
    """
    try:
        with path.open("rb") as file:  # which may be a pipe or a terminal, whose size is not known before
            content = file.read(MAX_PROMPTS + 1)
        if len(content) > MAX_PROMPTS:
            raise DataError(f"'{path}' has more than {MAX_PROMPTS:,} bytes of prompts: split it into several files")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 (at byte {error.start}): convert it with iconv") from error
    except OSError as error:
        raise DataError(f"cannot read the prompts in '{path}' ({error.strerror})") from error
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]
    numbered = [(number, line) for number, line in numbered if line]
    if not numbered:
        raise DataError(f"'{path}' has no prompts: write one on each line")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_json_prompt(line, f"'{path}', line {number}") for number, line in numbered]


def _json_prompt(line: str, where: str) -> str:
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error})") from error
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        raise DataError(f'{where} should be like {{"prompt": "some text"}}')
    return prompt


def _as_json(index: int, prompt: str, sample: int, text: Continuation) -> str:
    line = {"index": index, "prompt": prompt, "sample": sample, "text": text.text}
    line |= {"tokens": len(text.ids), "end": text.reason}
    # log_probabilities is the former name of logprobs
    more = {"logprobs": text.logprobs, "log_probabilities": text.logprobs, "score": text.score}
    line |= {name: value for name, value in more.items() if value is not None}
    return json.dumps(line, ensure_ascii=False)


def _titled(writer: Writer, prompt: str, place: tuple[int, int], text: Continuation) -> str:
    """A text below a line with its prompt; place: number of the text, and number of texts of the prompt."""
    number = f", {place[0] + 1} of {place[1]}" if place[1] > 1 else ""
    return f"--- {prompt!r}{number}\n{prompt if writer.chat is None else ''}{text.text}\n"


class Progress:
    """A progress line with the number of complete texts, replaced on a terminal, else printed at intervals."""

    seconds_between_lines = 10.0

    def __init__(self, total: int, out: TextIO) -> None:
        self._total, self._out, self._terminal = total, out, out.isatty()
        self._last = time.monotonic()

    def show(self, done: int, rate: str) -> None:
        line = f"{done} of {self._total} texts, {rate}"
        if self._terminal:
            print(f"\r{line}", end="", file=self._out, flush=True)
        elif time.monotonic() - self._last >= self.seconds_between_lines:
            print(line, file=self._out, flush=True)
            self._last = time.monotonic()

    def clear(self) -> None:
        """Remove the line from a terminal, so that a text can be printed."""
        if self._terminal:
            print("\r\033[K", end="", file=self._out, flush=True)
