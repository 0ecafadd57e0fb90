"""Chat templates by name, from a file, and from the definition in a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from modular_gpt.core.errors import ConfigError, DataError, unknown
from modular_gpt.core.json_files import read_regular
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data.templates.alpaca import AlpacaTemplate
from modular_gpt.data.templates.base import ChatTemplate, SpecialTexts
from modular_gpt.data.templates.chatml import ChatMLTemplate
from modular_gpt.data.templates.jinja import DEFAULT, MAX_CHARACTERS, JinjaTemplate
from modular_gpt.data.templates.plain import PlainTemplate
from modular_gpt.data.templates.turns import TurnTemplate

if TYPE_CHECKING:
    from modular_gpt.data.tokenizers.base import Tokenizer

SUFFIX = ".jinja"

BY_NAME: dict[str, type[TurnTemplate]] = {
    template.name: template for template in (AlpacaTemplate, ChatMLTemplate, PlainTemplate)
}
TEMPLATES: dict[str, type[ChatTemplate]] = {**BY_NAME, JinjaTemplate.name: JinjaTemplate}


def template_names() -> list[str]:
    """The names of the templates that need no file."""
    return sorted(BY_NAME)


def build_template(name: str | Path, tokenizer: "Tokenizer | None" = None) -> ChatTemplate:
    """A template by its name, with the special tokens of a tokenizer.

    name: plain, chatml or alpaca; auto: the tokenizer's template; or the path of a .jinja file
    tokenizer: the tokenizer for the rendered text; None: there are no tokens that begin or end a text

    Raises:
        ConfigError: there is no such template, or the tokenizer has none.
        DataError: the file cannot be read.
    """
    texts = SpecialTexts.of(tokenizer)
    if str(name) == "auto":
        if tokenizer is None or tokenizer.template is None:
            raise ConfigError(f"this model has no chat template: choose one of {', '.join(template_names())}")
        return tokenizer.template
    if str(name).endswith(SUFFIX):
        return _from_file(Path(name).expanduser(), texts)
    if str(name) not in BY_NAME:
        choices = unknown("chat template", str(name), template_names())
        raise ConfigError(f"{choices}; or give the path of a {SUFFIX} file")
    return BY_NAME[str(name)](texts)


def _from_file(path: Path, texts: SpecialTexts) -> JinjaTemplate:
    try:
        source = read_regular(path, 4 * MAX_CHARACTERS).decode()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the chat template '{path}' ({error})") from error
    tokens = {"bos_token": texts.bos, "eos_token": texts.eos}
    return JinjaTemplate({DEFAULT: source}, {name: text for name, text in tokens.items() if text}, texts)


def definition_of(template: ChatTemplate) -> PlainDict:
    """A template as plain JSON values, for ``template_of``."""
    return {"name": template.name, **template.definition()}


def template_of(definition: object, texts: SpecialTexts) -> ChatTemplate:
    """The template that ``definition_of`` described.

    Raises:
        ValueError, LookupError, TypeError, DataError: the definition is damaged.
    """
    if not isinstance(definition, Mapping):
        raise ValueError("the chat template is no mapping")
    values = dict(definition)
    return TEMPLATES[values.pop("name")].from_definition(values, texts)
