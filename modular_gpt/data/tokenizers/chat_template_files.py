"""The Jinja chat templates in a model's folder, where transformers keeps them.

chat_template.jinja                     the default; overrides tokenizer_config.json
additional_chat_templates/<name>.jinja  further templates by name
tokenizer_config.json, chat_template    the default as a text, or a list of names and templates
"""

from collections.abc import Mapping
from pathlib import Path

from modular_gpt.core.errors import DataError
from modular_gpt.core.json_files import load_json_object, read_regular
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.data.templates import JinjaTemplate, SpecialTexts
from modular_gpt.data.templates.jinja import DEFAULT, MAX_CHARACTERS, MAX_TEMPLATES
from modular_gpt.data.tokenizers.special_tokens import MAX_BYTES, TOKENIZER_CONFIG

CHAT_TEMPLATE, FURTHER = "chat_template.jinja", "additional_chat_templates"


def read_chat_template(path: Path, texts: SpecialTexts) -> JinjaTemplate | None:
    """The chat template in the files beside a tokenizer file; None if there is none.

    path: of the tokenizer file; texts: special tokens of the tokenizer

    Raises:
        DataError: a file cannot be read, or has a template of a wrong type.
    """
    beside = path.with_name(TOKENIZER_CONFIG)
    settings = load_json_object(beside, MAX_BYTES, remedy="correct or remove it") if beside.is_file() else {}
    sources = _from_files(path) or _from_settings(settings, beside)
    if not sources:
        return None
    tokens = {name: token for name in settings if name.endswith("_token") and (token := _text(settings[name]))}
    return JinjaTemplate(sources, tokens, texts)


def _from_files(path: Path) -> dict[str, str]:
    default, folder = path.with_name(CHAT_TEMPLATE), path.with_name(FURTHER)
    files = {DEFAULT: default} if default.is_file() else {}
    further = sorted(folder.glob("*.jinja"))[:MAX_TEMPLATES] if folder.is_dir() else []
    files |= {file.stem: file for file in further}
    found = {}
    for name, file in files.items():
        try:
            found[name] = read_regular(file, 4 * MAX_CHARACTERS).decode()
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the chat template '{file}' ({error}): correct or remove it") from error
    return found


def _from_settings(settings: PlainMapping, path: Path) -> dict[str, str]:
    value = settings.get("chat_template")
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    items = value if isinstance(value, list) else []
    found = {item.get("name"): item.get("template") for item in items if isinstance(item, Mapping)}
    if not found or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise DataError(f"'{path}': chat_template must be a text, or a list of names and templates, got {value!r:.80}")
    return {str(name): str(template) for name, template in found.items()}


def _text(value: object) -> str:
    """The text of a token, given directly or in a mapping with a ``content``."""
    token = value.get("content") if isinstance(value, Mapping) else value
    return token if isinstance(token, str) else ""
