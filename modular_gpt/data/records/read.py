"""Reading records: from files of any format to ``Record`` objects."""

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

SHOWN = 3  # number of error messages that are kept


@dataclass
class Skipped:
    """The bad records that were left out.

    count: number of them; first: the error messages of the first ``SHOWN``
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

    paths: files as ``record_files`` finds them; the format of each file is that of its first valid record
    fields: name of a field in ``FORMATS`` -> its name in the files, if it is another
    skipped: counts bad records, which are left out; None: the first one raises an error

    Raises:
        ConfigError: a file needs a package that is not installed.
        DataError: a file cannot be read or has no record.
        BadRecord: a record cannot be used, and ``skipped`` is None.
    """
    renamed = check_fields(fields or {})
    for path in paths:
        yield from _records_of(path, renamed, None if skipped is None else skipped.add)


def check_fields(fields: Mapping[str, str], known: Sequence[str] = FIELDS) -> Mapping[str, str]:
    """Return ``fields``; raise a ConfigError for a name that is not ``known``, or one in the files that is no text."""
    for name, name_in_files in fields.items():
        if name not in known:
            raise ConfigError(f"data.fields: {unknown('field', str(name), known)}")
        if not isinstance(name_in_files, str) or not name_in_files:
            shown_name = shown(name_in_files)
            raise ConfigError(f"data.fields.{name} must be the name of a field in the files, got {shown_name}")
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
    """The row with the names of ``FORMATS`` for its fields.

    fields: as for ``read_records``; needs: names of fields that the row must have

    Raises:
        BadRecord: the row lacks a field that ``fields`` or ``needs`` names.
    """
    missing = next((name for name in fields.values() if name not in row.values), None)
    if missing is not None:
        raise BadRecord(
            f"{row.place}: there is no field {missing!r}, which data.fields names; it has {_names(row.values)}"
        )
    others = {name: value for name, value in row.values.items() if name not in fields.values()}
    values = {**others, **{name: row.values[name_in_files] for name, name_in_files in fields.items()}}
    lacking = next((name for name in needs if name not in values), None)
    if lacking is not None:
        raise BadRecord(
            f"{row.place}: there is no field {lacking!r}, found {_names(row.values)}: correct the row, or map the name"
            f" by data.fields={{{lacking}: <name in the file>}}"
        )
    return Row(row.place, values)


def recognise(row: Row) -> str:
    """The name of the first format whose needed fields are all in a row.

    Raises:
        BadRecord: there is no such format.
    """
    for name, item in FORMATS.items():
        if all(needed in row.values for needed in item.needs):
            return name
    known = "; ".join(" + ".join(item.needs) for item in FORMATS.values())
    raise BadRecord(
        f"{row.place}: no format has the fields {_names(row.values)}: name them as one of these ({known}),"
        " or map names by data.fields={prompt: <name in the file>, ...}"
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
