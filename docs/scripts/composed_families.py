"""The options of the group ``family`` from their yaml files; tables.py writes the table into README.md."""

from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.families import ABOUT, FAMILY, chosen_options, family_content, family_files
from modular_gpt.cli.composition.schema import headline

HEAD = ["`family=`", "components", "characteristics", "used by"]
HIDDEN = ("layers",)  # a pattern is described in words


def rows() -> list[list[str]]:
    found = []
    for name, path in sorted(family_files([conf_dir()]).items()):
        content = family_content(path)
        assert set(content[FAMILY]) & set(ABOUT), f"{path} names no models that use it"
        options = [f"`{option}`" for group, option in chosen_options(content).items() if group not in HIDDEN]
        found.append([f"`{name}`", " ".join(options), headline(path), content[FAMILY]["used_by"]])
    return found
