"""The formats of records, recognised by their fields: one function and one row of ``FORMATS`` each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from modular_gpt.core.json_files import parse_json
from modular_gpt.data.records.record import ASSISTANT, ROLES, SYSTEM, USER, BadRecord, Record, Turn
from modular_gpt.data.rows import Row

SHAREGPT_ROLES = {
    "system": SYSTEM,
    **dict.fromkeys(("human", "user"), USER),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), ASSISTANT),
}


@dataclass(frozen=True)
class Format:
    """How a record is recognised and read.

    needs: the fields by which it is recognised
    read: converts a row with these fields to a record
    noun, plural: name of such records in messages
    optional: further fields that ``read`` uses
    """

    needs: tuple[str, ...]
    read: Callable[[Row], Record]
    noun: str
    plural: str
    optional: tuple[str, ...] = field(default=())


def found(value: object) -> str:
    """A description of a value for messages: its type, and its content if it is short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}" if len(value) <= 40 else f"the text {value[:40]!r}..."
        case int() | float():
            return f"the number {value!s:.40}"
        case Mapping():
            return f"an object with {', '.join(map(str, list(value)[:5]))[:80] or 'no field'}"
        case list() | tuple():
            return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def _bad(row: Row, name: str, problem: str) -> BadRecord:
    return BadRecord(f"{row.place}, field {name!r}: {problem}")


def text_of(row: Row, name: str, empty: bool = False) -> str:
    """The text in a field; ``empty``: whether it may be empty.

    Raises:
        BadRecord: the value is no text, is empty, or has half a surrogate pair.
    """
    return checked_text(row, name, row.values[name], empty)


def checked_text(row: Row, name: str, value: object, empty: bool = False) -> str:
    """``value``, found in the field ``name``, as ``text_of`` checks it."""
    if not isinstance(value, str):
        raise _bad(row, name, f"it must be text, found {found(value)}")
    if not value and not empty:
        raise _bad(row, name, "it is empty, so that there is nothing to learn")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise _bad(row, name, f"U+{code:04X} at position {error.start} is half a surrogate pair") from None
    return value


def prompt_completion(row: Row) -> Record:
    """A prompt and the text that continues it."""
    prompt, answer = text_of(row, "prompt", empty=True), text_of(row, "completion")
    return Record("completion", row.place, answer, prompt)


def whole_text(row: Row) -> Record:
    """A text that is learned as a whole, without a prompt."""
    return Record("text", row.place, text_of(row, "text"))


def text_label(row: Row) -> Record:
    """A text and its class, a text or a whole number."""
    label = row.values["label"]
    if isinstance(label, (bool, int)):
        label = str(label).lower()
    if not isinstance(label, str):
        raise _bad(row, "label", f"it must be text or a whole number, found {found(label)}")
    label = checked_text(row, "label", label)
    return Record("label", row.place, label, text_of(row, "text"), label=label)


def choices(row: Row) -> Record:
    """A prompt, several candidates, and the right one by its number from 0, its letter from A, or its text."""
    listed = _listed(row, "choices")
    if not isinstance(listed, (list, tuple)) or len(listed) < 2:
        raise _bad(row, "choices", f"it must be a list of two or more texts, found {found(listed)}")
    candidates = tuple(checked_text(row, "choices", item) for item in listed)
    if len(set(candidates)) < len(candidates):
        raise _bad(row, "choices", f"{found(next(c for c in candidates if candidates.count(c) > 1))} is in it twice")
    right = candidates[_right(row, candidates)]
    return Record("choices", row.place, right, text_of(row, "prompt", empty=True), choices=candidates)


def _listed(row: Row, name: str) -> object:
    """The value of a field that must be a list; in a table, whose cells are text, it is written as JSON."""
    value = row.values[name]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise _bad(row, name, f"not a list in JSON ({error})") from None
    return value


def _right(row: Row, candidates: tuple[str, ...]) -> int:
    """The index of the right candidate."""
    answer = row.values["answer"]
    if isinstance(answer, str) and answer in candidates:
        return candidates.index(answer)
    letters = [chr(ord("A") + number) for number in range(min(26, len(candidates)))]
    if isinstance(answer, str) and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    if isinstance(answer, str) and answer.strip().isascii() and answer.strip().isdigit() and len(answer.strip()) < 10:
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(candidates):
            return answer
        raise _bad(row, "answer", f"there are the choices 0 to {len(candidates) - 1}, found {found(answer)}")
    raise _bad(row, "answer", f"it must be the number, letter or text of a choice, found {found(answer)}")


def instruction(row: Row) -> Record:
    """Alpaca's fields: an instruction, an optional input for it, and the output."""
    message, answer = text_of(row, "instruction"), text_of(row, "output")
    value = row.values.get("input")
    if value is not None and (text := checked_text(row, "input", value, empty=True)):
        message = f"{message}\n\n{text}"
    return Record("instruction", row.place, answer, message, (Turn(USER, message), Turn(ASSISTANT, answer)))


def messages(row: Row) -> Record:
    """A conversation as a list of messages with ``role`` and ``content``."""
    return conversation(row, "messages", "role", "content", {role: role for role in ROLES})


def sharegpt(row: Row) -> Record:
    """A conversation as a list of messages with ``from`` and ``value``."""
    return replace(conversation(row, "conversations", "from", "value", SHAREGPT_ROLES), format="sharegpt")


def conversation(row: Row, name: str, role: str, content: str, roles: Mapping[str, str]) -> Record:
    """The conversation in the field ``name``, a list of mappings with the keys ``role`` and ``content``.

    Raises:
        BadRecord: an item is no such mapping, a role is not in ``roles``, a system message is not the first, or there
            is no message of the assistant, or an empty one.
    """
    listed = _listed(row, name)
    if not isinstance(listed, (list, tuple)) or not listed:
        raise _bad(row, name, f"it must be a list of messages, found {found(listed)}")
    turns: list[Turn] = []
    for number, item in enumerate(listed, 1):
        place = f"{name}[{number}]"
        if not isinstance(item, Mapping) or role not in item or content not in item:
            raise _bad(row, place, f"a message needs {role!r} and {content!r}, found {found(item)}")
        if not isinstance(item[role], str) or item[role] not in roles:
            raise _bad(row, place, f"{role!r} must be one of {', '.join(roles)}, found {found(item[role])}")
        turn = Turn(roles[item[role]], checked_text(row, place, item[content], empty=item[role] not in _ANSWERING))
        if turn.role == SYSTEM and turns:
            raise _bad(row, place, "a system message can only be the first")
        turns.append(turn)
    replies = [number for number, turn in enumerate(turns) if turn.role == ASSISTANT]
    if not replies:
        raise _bad(row, name, "no message is the assistant's, so that there is nothing to learn")
    prompts = [turn.content for turn in turns[: replies[-1]] if turn.role == USER]
    return Record("messages", row.place, turns[replies[-1]].content, prompts[-1] if prompts else "", tuple(turns))


_ANSWERING = {name for name, role in SHAREGPT_ROLES.items() if role == ASSISTANT}

# The format of a row is the first whose needed fields are all in the row.
FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), messages, "conversation", "conversations"),
    "sharegpt": Format(("conversations",), sharegpt, "conversation", "conversations"),
    "choices": Format(("prompt", "choices", "answer"), choices, "question with choices", "questions with choices"),
    "completion": Format(("prompt", "completion"), prompt_completion, "prompt and answer", "prompts and answers"),
    "instruction": Format(("instruction", "output"), instruction, "instruction", "instructions", optional=("input",)),
    "label": Format(("text", "label"), text_label, "labelled text", "labelled texts"),
    "text": Format(("text",), whole_text, "text", "texts"),
}
CONVERSATIONS = {"messages", "sharegpt", "instruction"}  # formats whose records have turns
FIELDS = tuple(dict.fromkeys(name for item in FORMATS.values() for name in (*item.needs, *item.optional)))
