"""Names of models: paths of checkpoints, published names, and the errors for other names. Does not import PyTorch."""

from contextlib import suppress
from pathlib import Path

from modular_gpt.core.errors import CheckpointError, unknown

FOLDER = "checkpoints"  # of a run's directory
MANIFEST = "manifest.json"
SHORT_NAMES = {  # of published models, with their repositories on the Hugging Face hub
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}


def is_checkpoint_path(name: str) -> bool:
    """Whether the name of a model is a path, of an existing or missing file or directory, and no published name."""
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    in_a_folder = "/" in name and path.parent.is_dir()  # a misspelt run rather than owner/name of the hub
    return path.exists() or path.is_symlink() or looks_like_path or in_a_folder or name.startswith("runs/")


def no_checkpoint(path: Path) -> CheckpointError:
    """The error for a path that does not exist; it names runs or checkpoints in the same directory."""
    hint = "; train a model first with mgpt-train"
    with suppress(OSError):
        near = sorted(p.name for p in path.parent.iterdir() if (p / FOLDER).is_dir() or (p / MANIFEST).is_file())
        if near:
            hint = f"; in '{path.parent}' there are: {', '.join(near[-5:])}"
    return CheckpointError(f"there is no checkpoint at '{path}'{hint}")


def check_exists(name: str) -> None:
    """Raise a CheckpointError for a path that does not exist, and for a name that no published model can have.

    Neither the hub nor the target of a link is looked up.
    """
    path = Path(name).expanduser()
    if path.exists() or path.is_symlink():
        return
    if is_checkpoint_path(name):
        raise no_checkpoint(path)
    if "/" not in name and name not in SHORT_NAMES:
        known = unknown("published model", name, SHORT_NAMES)
        raise CheckpointError(f"there is no checkpoint at {name!r}, and {known}, or owner/name of the Hugging Face hub")
