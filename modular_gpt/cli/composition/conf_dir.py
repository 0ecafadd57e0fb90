"""The folder with the yaml files of the command line, for any way of installing the package."""

from pathlib import Path

from modular_gpt.core.errors import ConfigError


def conf_dir() -> Path:
    """The folder ``conf``: inside the package in a wheel, beside it in a checkout or an editable install.

    Raises:
        ConfigError: neither place has it, as when the package's folder was copied alone.
    """
    package = Path(__file__).resolve().parents[2]
    for parent in (package, package.parent):
        conf = parent / "conf"
        if (conf / "train.yaml").is_file():  # beside an installed package, some other project's conf may lie
            return conf
    raise ConfigError(
        f"no conf/train.yaml in {package} or {package.parent}; install modular-gpt again with pip, "
        "or keep conf/ beside the package as in the repository"
    )
