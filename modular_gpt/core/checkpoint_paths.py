"""Which names of models are paths of checkpoints, and the message about a missing one; without PyTorch."""

from contextlib import suppress
from pathlib import Path

from modular_gpt.core.errors import CheckpointError

FOLDER = "checkpoints"  # of a run's directory
MANIFEST = "manifest.json"


def is_checkpoint_path(name: str) -> bool:
    """Whether the name of a model is that of a file or directory, present or missing, and no published name."""
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    in_a_folder = "/" in name and path.parent.is_dir()  # a misspelt run rather than owner/name of a hub
    return path.exists() or path.is_symlink() or looks_like_path or in_a_folder or name.startswith("runs/")


def no_checkpoint(path: Path) -> CheckpointError:
    """The error for a path where there is nothing; it names runs or checkpoints in the same directory."""
    hint = "; train a model first with mgpt-train"
    with suppress(OSError):
        near = sorted(p.name for p in path.parent.iterdir() if (p / FOLDER).is_dir() or (p / MANIFEST).is_file())
        if near:
            hint = f"; in '{path.parent}' there are: {', '.join(near[-5:])}"
    return CheckpointError(f"there is no checkpoint at '{path}'{hint}")


def check_exists(name: str) -> None:
    """Raise a CheckpointError for a path where there is nothing; a published name, or a link, is not looked at."""
    path = Path(name).expanduser()
    if is_checkpoint_path(name) and not path.exists() and not path.is_symlink():
        raise no_checkpoint(path)
