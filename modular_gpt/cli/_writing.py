"""What mgpt-generate can be told, and what it does with prompts: one, a file of them, or a small suite."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

from modular_gpt.cli._compose import as_yaml, composed, plain
from modular_gpt.cli._conversation import Conversation
from modular_gpt.cli._errors import explained
from modular_gpt.cli._overrides import read_overrides
from modular_gpt.cli._settings import Command, described, fields_of, names_of
from modular_gpt.cli._writer import Text, Writer
from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.settings import from_mapping
from modular_gpt.generation import GenerationSettings, SamplingSettings

SUITE = ("def ", "import ", "The ", "Once upon a time", "\n")  # where no prompt is given; those that can be read


@dataclass
class Task:
    """What to write, with which model.

    checkpoint: a run's directory, a checkpoint, a folder in Hugging Face's format, or a published name such as gpt2
    prompt: text to continue; without one, a few short ones
    prompts: a file with a prompt on each line, or with {"prompt": ...} on each line where it ends in .jsonl
    num_samples: continuations of each prompt
    json: a JSON object on each line instead of text
    interactive: prompt after prompt from the keyboard
    device: auto | cpu | cuda | cuda:1 | mps ...
    """

    checkpoint: str = "runs/latest"
    prompt: str | None = None
    prompts: str | None = None
    num_samples: int = 1
    json: bool = False
    interactive: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "prompts", "interactive") if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.json and self.interactive:
            raise ConfigError("json=true has no conversation: leave out interactive=true")
        if self.num_samples < 1:
            raise ConfigError(f"num_samples must be 1 or more, got {self.num_samples}")


_sampling = names_of(GenerationSettings) - {"samples", "stop_tokens"}  # num_samples; the tokenizer knows its end
GenerateSettings = make_dataclass(
    "GenerateSettings",
    [*fields_of(Task, names_of(Task)), *fields_of(GenerationSettings, _sampling)],
    namespace=described(Task, GenerationSettings, SamplingSettings),
)
GENERATE = Command(name="generate", plain=GenerateSettings)


def read_task(words: Sequence[str], where: list[Path]) -> tuple[Task, GenerationSettings, str]:
    """The task and the settings that some words describe, and all of them as YAML.

    Raises:
        ConfigError: a word is no setting, or a value cannot be.
    """
    _, spelled = read_overrides(GENERATE, words, where)
    with explained(GENERATE, where):
        config = composed(GENERATE, spelled, where)
        values = plain(config)
    task = from_mapping(Task, {name: values[name] for name in names_of(Task)}, GENERATE.name)
    sampling = {name: values[name] for name in _sampling}
    settings = from_mapping(GenerationSettings, {**sampling, "samples": task.num_samples}, GENERATE.name)
    return task, settings, as_yaml(config)


def write_texts(task: Task, settings: GenerationSettings, writer: Writer) -> None:
    """Continue the prompts of a task and print the texts, then the figures."""
    prompts = _prompts(task, writer)
    ids = [writer.encode(prompt) for prompt in prompts]
    if task.json:
        _print_json(prompts, writer.write(ids, settings), settings.samples)
    elif len(ids) * settings.samples == 1:
        print(prompts[0], end="", flush=True)
        writer.write(ids, settings, lambda new: print(new, end="", flush=True))
        print()
    else:
        _print_texts(prompts, writer.write(ids, settings), settings.samples)
    print(f"[{writer.figures}]", file=sys.stderr if task.json else sys.stdout)


def converse(words: Sequence[str], where: list[Path], settings: GenerationSettings, writer: Writer) -> None:
    """Answer prompts from the keyboard; a line such as ``top_k=40`` is one more word of the command line."""
    said = list(words)

    def change(line: str) -> GenerationSettings | None:
        if line.partition("=")[0] not in _sampling or "=" not in line:
            return None
        changed = read_task([*said, line], where)[1]
        changed.check(writer.model.config.vocab_size)
        said.append(line)
        return changed

    Conversation(writer, settings, change).run()


def _prompts(task: Task, writer: Writer) -> list[str]:
    if task.prompt is not None:
        return [task.prompt]
    if task.prompts is not None:
        return read_prompts(Path(task.prompts).expanduser())
    known = [prompt for prompt in SUITE if _readable(writer, prompt)]
    if not known:
        raise ConfigError("this model's tokenizer reads none of the prompts that are there for a try: give prompt=...")
    return known


def _readable(writer: Writer, prompt: str) -> bool:
    try:
        writer.encode(prompt)
    except DataError:
        return False
    return True


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one on each line; lines that are empty are left out.

    Raises:
        DataError: the file is missing, empty or no UTF-8, or a line is not what it should be; names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 (at byte {error.start}): convert it with iconv") from error
    except OSError as error:
        raise DataError(f"cannot read the prompts in '{path}' ({error.strerror})") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not numbered:
        raise DataError(f"'{path}' has no prompts: write one on each line")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_json_prompt(line, f"'{path}', line {number}") for number, line in numbered]


def _json_prompt(line: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise DataError(f'{where} should be like {{"prompt": "some text"}}')
    return value["prompt"]


def _print_json(prompts: Sequence[str], texts: Sequence[Text], samples: int) -> None:
    for index, text in enumerate(texts):
        line = {
            "prompt": prompts[index // samples],
            "sample": index % samples,
            "text": text.text,
            "tokens": len(text.ids),
            "stopped": text.stopped,
        }
        print(json.dumps(line, ensure_ascii=False), flush=True)


def _print_texts(prompts: Sequence[str], texts: Sequence[Text], samples: int) -> None:
    for index, text in enumerate(texts):
        number = f", sample {index % samples + 1} of {samples}" if samples > 1 else ""
        prompt = prompts[index // samples]
        print(f"--- {prompt!r}{number}\n{prompt}{text.text}\n")
