"""Read records: from files to ``Record`` objects, whatever the format."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modular_gpt.core.errors import ConfigError, DataError, printable, unknown
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.validation import shown
from modular_gpt.data.corpora.file_search import find_files, path_patterns
from modular_gpt.data.records.formats import FIELDS, FORMATS
from modular_gpt.data.records.record import BadRecord, Record
from modular_gpt.data.rows import READERS, Row, is_row_file, read_rows

SHOWN = 3  # mistakes that are kept word for word


@dataclass
class Skipped:
    """The bad records that were left out.

    count: how many; first: the messages about the first few of them
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Count a bad record instead of raising its error."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(str(error))


def record_files(paths: object, setting: str = "data.path") -> list[Path]:
    """The record files that paths, patterns and folders name; a folder means all record files below it.

    Raises:
        ConfigError: ``paths`` is neither a path nor a list of these.
        DataError: a path does not exist, a pattern or a folder has no file, or a file has another ending.
    """
    found: dict[Path, None] = {}
    for pattern in path_patterns(paths, setting):
        folder = Path(pattern).expanduser()
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if is_row_file(path) and path.is_file())
            if not files:
                raise DataError(f"'{folder}' has no record file ({', '.join(READERS)}): correct {setting}")
        else:
            files = find_files([pattern], setting)
        found.update(dict.fromkeys(files))
    for path in found:
        if not is_row_file(path):
            raise DataError(f"'{path}' has the ending of no record file: give one that ends with {', '.join(READERS)}")
    return list(found)


def read_records(
    paths: Iterable[Path], fields: Mapping[str, str] | None = None, skipped: Skipped | None = None
) -> Iterator[Record]:
    """The records of some files, in the order of the files and of their lines.

    paths: files as ``record_files`` finds them; each may have another format, which its first good record decides
    fields: our name of a field -> its name in the files, for fields of other names
    skipped: counts bad records, which are left out; None: the first one raises its error

    Raises:
        ConfigError: a file needs a package that is not installed.
        DataError: a file cannot be read or has no record.
        BadRecord: a record cannot be used, and ``skipped`` is None.
    """
    renamed = check_fields(fields or {})
    for path in paths:
        yield from _records_of(path, renamed, None if skipped is None else skipped.add)


def check_fields(fields: Mapping[str, str], known: Sequence[str] = FIELDS) -> Mapping[str, str]:
    """``fields``, after raising a ConfigError for a name of ours that is not known, or a name that is no text."""
    for ours, theirs in fields.items():
        if ours not in known:
            raise ConfigError(f"data.fields: {unknown('field', str(ours), known)}")
        if not isinstance(theirs, str) or not theirs:
            raise ConfigError(f"data.fields.{ours} must be the name of a field in the files, got {shown(theirs)}")
    return fields


def _records_of(path: Path, fields: Mapping[str, str], skip: Callable[[DataError], None] | None) -> Iterator[Record]:
    name, count = "", 0
    for row in read_rows(path, skip):
        try:
            row = renamed_row(row, fields)
            name = name or recognise(row)
            yield _read(row, name)
            count += 1
        except BadRecord as error:
            if skip is None:
                raise
            skip(error)
    if not count:
        raise DataError(f"'{path}' has no record that can be used: give it some, or leave it out")


def renamed_row(row: Row, fields: Mapping[str, str], needs: Sequence[str] = ()) -> Row:
    """The same row with the fields by our names.

    Raises:
        BadRecord: it lacks a field that ``fields`` names, or one of those that it ``needs``.
    """
    missing = next((theirs for theirs in fields.values() if theirs not in row.values), None)
    if missing is not None:
        raise BadRecord(
            f"{row.place}: there is no field {missing!r}, which data.fields names; it has {_names(row.values)}"
        )
    others = {name: value for name, value in row.values.items() if name not in fields.values()}
    values = {**others, **{ours: row.values[theirs] for ours, theirs in fields.items()}}
    lacking = next((name for name in needs if name not in values), None)
    if lacking is not None:
        raise BadRecord(
            f"{row.place}: there is no field {lacking!r}, found {_names(row.values)}: correct the row, or map the name"
            f" by data.fields={{{lacking}: <their name>}}"
        )
    return Row(row.place, values)


def recognise(row: Row) -> str:
    """The name of the first format that a row has all fields of.

    Raises:
        BadRecord: it is none.
    """
    for name, item in FORMATS.items():
        if all(needed in row.values for needed in item.needs):
            return name
    known = "; ".join(" + ".join(item.needs) for item in FORMATS.values())
    raise BadRecord(
        f"{row.place}: no format has the fields {_names(row.values)}: name them as one of these ({known}),"
        " or map names by data.fields={prompt: <their name>, ...}"
    )


def _read(row: Row, name: str) -> Record:
    missing = next((needed for needed in FORMATS[name].needs if needed not in row.values), None)
    if missing is not None:
        raise BadRecord(
            f"{row.place}: there is no field {missing!r}, which the first record of the file has; found"
            f" {_names(row.values)}"
        )
    return FORMATS[name].read(row)


def _names(fields: PlainMapping) -> str:
    names = [printable(str(name), 40) for name in fields]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more
