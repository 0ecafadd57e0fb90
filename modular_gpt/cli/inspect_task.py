"""The settings of mgpt-inspect, and the page that it writes."""

from dataclasses import dataclass
from pathlib import Path

from modular_gpt.checkpoint.resolve import DTYPES, load_with_tokenizer
from modular_gpt.cli.composition.schema import Command
from modular_gpt.cli.finite_weights import check_finite_weights
from modular_gpt.core.atomic_files import write_problem
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.progress import progress_line
from modular_gpt.core.validation import expand_home, one_of
from modular_gpt.data.corpora.files import read_text
from modular_gpt.inspection import MAX_TOKENS, describe, write_page
from modular_gpt.runtime.device import choose_device, prepare_device


@dataclass
class InspectSettings:
    """Settings of mgpt-inspect.

    checkpoint: The model to inspect: a run's directory, a checkpoint, a folder in Hugging Face's format, or a
        published name such as gpt2.
    tokenizer: The tokenizer to use instead of the model's own: a tokenizer.json, a folder with one, a run, or a name
        such as gpt2. By default (null) the model's own.
    prompt: The text that the model reads.
    text: A file whose beginning the model reads instead of prompt.
    out: The HTML file to write; an existing file is replaced.
    layers: The blocks whose heads are shown, as [0,5]. By default (null) the first ones, up to 160 heads.
    max_tokens: Number of tokens of the text to read, at most 256.
    device: The device to compute on: auto, cpu, cuda, cuda:1, mps or another name that PyTorch knows.
    dtype: Data type of the weights, float32 or bf16. By default (null) the one they were saved in.
    """

    checkpoint: str = "runs/latest"
    tokenizer: str | None = None
    prompt: str | None = None
    text: str | None = None
    out: str = "inspect.html"
    layers: list[int] | None = None
    max_tokens: int = MAX_TOKENS
    device: str = "auto"
    dtype: str | None = None

    def __post_init__(self) -> None:
        expand_home(self, "checkpoint", "text", "out")
        if self.prompt is not None and self.text is not None:
            raise ConfigError("prompt and text exclude each other: give one of them")
        if self.dtype is not None:
            one_of(self.dtype, tuple(DTYPES), "dtype")


_CHARACTERS = 100 * MAX_TOKENS  # read of a file, enough for ``MAX_TOKENS`` tokens
INSPECT = Command(name="inspect", plain=InspectSettings)


def write(settings: InspectSettings) -> Path:
    """Write the page; returns its path.

    Raises:
        UserError: the model or the text is missing, the tokenizer cannot encode the text, or ``out`` cannot be
            written.
    """
    text = settings.prompt if settings.text is None else read_text(Path(settings.text))[:_CHARACTERS]
    if text is None:
        raise ConfigError("give the text that the model reads: prompt='...' or text=<file>")
    device = choose_device(settings.device)
    prepare_device(threads=None)
    dtype = None if settings.dtype is None else DTYPES[settings.dtype]
    model, tokenizer = load_with_tokenizer(settings.checkpoint, device, dtype, settings.tokenizer)
    check_finite_weights(model, settings.checkpoint)
    title = f"{settings.checkpoint}: {describe(model)}"
    try:
        with progress_line("Inspecting"):
            return write_page(
                model,
                tokenizer,
                text,
                settings.out,
                title=title,
                layers=settings.layers,
                max_tokens=settings.max_tokens,
            )
    except OSError as error:
        reason, remedy = write_problem(error, Path(settings.out).absolute().parent)
        raise ConfigError(f"cannot write out={settings.out}: {reason}; {remedy}") from error
