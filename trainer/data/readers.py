"""The rows of one file, by the kind its name ends in; .gz behind it is unpacked.

    .jsonl            one JSON object a line; blank lines are no rows
    .json             a list of objects, {"data": [...]} or {"train": [...]}, or JSON lines under another name
    .csv, .tsv        a header, then one row a record; every field is text. .csv may be divided by semicolons
    .parquet, .arrow  one row a record
    .txt              one row a line, its field is text; blank lines are no rows

Text is UTF-8, or UTF-16 with its mark; what is in another encoding is named, not guessed at. A row that cannot be read
takes its place as a `BadRow`, so that the indices of the others do not depend on it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..encodings import UTF16, is_half_empty, other_kind, probable, utf16_order
from ..errors import Problem, UserError, first_line, kind_of_value, problem

Where = Callable[[], str]
# csv's own limit is 128 KiB; C's long is the most it takes
CSV_FIELD_LIMIT = 2**31 - 1
# No row is known that needs a tenth of it; Python gives up at some hundreds, by what goes through it.
DEEPEST = 100
_TOO_DEEP: tuple[str, dict[str, Any]] = ("data.too_deep", {"levels": DEEPEST})


class BadRow(Exception):
    """A row that cannot be used: the catalogue's keys for what is wrong with it, and their values."""

    def __init__(self, *faults: tuple[str, dict[str, Any]]):
        super().__init__(*faults)
        self.faults = faults

    def problems(self, where: Where) -> list[Problem]:
        """The faults in words; `where` names the row."""
        return [problem(key, **{"where": where(), **values}) for key, values in self.faults]


def kind_of(path: Path) -> str:
    """The kind of a data file: ".jsonl" of rows.jsonl and of rows.JSONL.gz; "" where rows are not read from it."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    return suffix if suffix in READERS else ""


def read_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    """Every row of a file in order, with what names it in a message ("data.jsonl line 3").

    Raises:
        UserError: the whole file cannot be read.
    """
    try:
        if kind_of(path) not in (".parquet", ".arrow"):
            _refuse_other(name, path)
        yield from READERS[kind_of(path)](name, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(problem("data.unreadable", source=name, what=first_line(error))) from error
    except OSError as error:
        raise UserError(problem("data.unreadable", source=name, what=error.strerror or error)) from error


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _refuse_other(name: str, path: Path) -> None:
    """Refuses what is no text: every line of it would be called badly encoded."""
    with _opened(path) as file:
        if kind := other_kind(file.read(64)):
            raise UserError(problem("data.other_file", source=name, kind=kind))


def _is_utf16(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(2) in UTF16


def _jsonl_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    if _is_utf16(path):
        for number, line in enumerate(_text(name, path).split("\n"), start=1):
            if line.strip():
                yield partial(say, "data.line", source=name, line=number), _parsed(line, name, number)
        return
    order = "utf-16"
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            where = partial(say, "data.line", source=name, line=number)
            if number == 1:  # later lines begin with the second half of a line feed
                order = utf16_order(raw) or order
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield where, BadRow(_wrong_encoding(raw, error))
                continue
            if is_half_empty(raw):
                yield where, BadRow(("data.other_encoding", {"byte": raw.index(0), "encoding": order}))
            elif line.strip():
                yield where, _parsed(line, name, number)


def _wrong_encoding(raw: bytes, error: UnicodeDecodeError) -> tuple[str, dict[str, Any]]:
    """The fault of bytes that are not UTF-8, with the encoding they are probably in."""
    encoding = probable(raw)
    if encoding is None:
        return "data.not_utf8", {"byte": error.start}
    return "data.other_encoding", {"byte": error.start, "encoding": encoding}


def _parsed(line: str, name: str, number: int) -> Any:
    try:
        return parse_row(line)
    except BadRow as deep:
        return deep
    except ValueError as error:  # a number of 5,000 digits is a ValueError without a position
        what = getattr(error, "msg", None) or first_line(error)
        return BadRow(("data.not_json", {"source": name, "line": number, "what": what}))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        BadRow: a name stands in it twice, of which the last would be kept alone.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(("data.field_twice", {"field": twice.encode("utf-8", "backslashreplace").decode()}))
    return found


def _object_or_fault(pairs: list[tuple[str, Any]]) -> Any:
    """As `_object`, with the fault in the object's place: the rows beside it are whole."""
    try:
        return _object(pairs)
    except BadRow as twice:
        return twice


def _fault_in(row: Any) -> BadRow | None:
    """The first fault in a row of JSON, in the row's place or below it."""
    level = [row]
    while level:
        for one in level:
            if isinstance(one, BadRow):
                return one
        within = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [item for one in within for item in one]
    return None


def parse_row(text: str) -> Any:
    """What json.loads says.

    Raises:
        ValueError: it is no JSON.
        BadRow: it is nested deeper than DEEPEST, or has a field twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise BadRow(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > DEEPEST and is_too_deep(value):
        raise BadRow(_TOO_DEEP)
    return value


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects stand in each other more than DEEPEST times."""
    level = [value]
    for _ in range(DEEPEST + 1):
        within = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        if not within:
            return False
        level = [item for one in within for item in one]
    return True


def _json_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    try:
        content = json.loads(_text(name, path), object_pairs_hook=_object_or_fault)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":
            yield from _jsonl_rows(name, path)
            return
        raise UserError(problem("data.not_json_file", source=name, what=first_line(error))) from None
    if isinstance(content, BadRow):  # the one object there is
        content = [content]
    rows = content.get("data", content) if isinstance(content, dict) else content
    train = content.get("train") if isinstance(content, dict) and not isinstance(rows, list) else None
    if isinstance(train, list) and all(isinstance(row, (dict, BadRow)) for row in train):
        rows = train  # as of a folder of save_to_disk
    if isinstance(content, dict) and not isinstance(rows, list):
        rows = [content]  # JSON lines of one line
    if not isinstance(rows, list):
        raise UserError(problem("data.not_a_list", source=name, kind=kind_of_value(content)))
    for index, row in enumerate(rows):
        fault = BadRow(_TOO_DEEP) if is_too_deep(row) else _fault_in(row)
        yield partial(say, "data.row", source=name, row=index), row if fault is None else fault


def _text(name: str, path: Path) -> str:
    with _opened(path) as file:
        raw = file.read()
    if raw[:2] not in UTF16 and is_half_empty(raw):
        raise UserError(problem("data.other_encoding", where=name, byte=raw.index(0), encoding=utf16_order(raw)))
    try:
        return raw.decode("utf-16" if raw[:2] in UTF16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        if raw[:2] in UTF16:
            raise UserError(problem("data.unreadable", source=name, what=first_line(error))) from None
        key, values = _wrong_encoding(raw, error)
        if key == "data.not_utf8":
            raise UserError(problem("config.not_utf8", file=name, byte=error.start)) from None
        raise UserError(problem(key, where=name, **values)) from None


def _txt_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    for number, line in enumerate(io.StringIO(_text(name, path), newline=None), start=1):
        if line.strip():
            yield partial(say, "data.line", source=name, line=number), {"text": line.rstrip("\n")}


def _csv_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    text = _text(name, path)
    yield from _records(name, text, "," if not _by_semicolons(text) else ";")


def _by_semicolons(text: str) -> bool:
    """Whether the header has semicolons and no comma, as spreadsheets of half of the world write it."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return ";" in header and "," not in header


def _tsv_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    yield from _records(name, _text(name, path), "\t")


def _refuse_twice(name: str, columns: Sequence[str]) -> None:
    """Refuses columns of one name: a row would keep the last of them alone."""
    if twice := sorted({column for column in columns if column.strip() and columns.count(column) > 1}):
        raise UserError(problem("data.column_twice", source=name, fields=", ".join(twice)))


def _records(name: str, text: str, delimiter: str) -> Iterator[tuple[Where, Any]]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    # strict: a quote that is never closed would swallow the rest of the file as one field
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        where = partial(say, "data.line", source=name, line=reader.line_num + 1)
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, BadRow(("data.not_csv", {"what": str(error)}))
            continue
        if not values:
            continue
        if header is None:
            header = values
            _refuse_twice(name, header)
        elif len(values) != len(header):
            yield where, BadRow(("data.csv_width", {"found": len(values), "expected": len(header)}))
        else:
            yield where, dict(zip(header, values, strict=True))


def _parquet_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _opened(path) as file, pyarrow.parquet.ParquetFile(file) as table:
            yield from _numbered(name, table.iter_batches(batch_size=1000))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(problem("data.unreadable", source=name, what=first_line(error))) from error


def _arrow_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    """Arrow IPC: the stream that datasets writes, or a file with a footer (Feather 2)."""
    import pyarrow
    from pyarrow import ipc

    try:
        with _opened(path) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                reader = ipc.open_file(file)
                yield from _numbered(name, (reader.get_batch(index) for index in range(reader.num_record_batches)))
            else:
                yield from _numbered(name, ipc.open_stream(file))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(problem("data.unreadable", source=name, what=first_line(error))) from error


def _rows_of(name: str, batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch.

    Raises:
        UserError: a column holds what Python has no value for: a date past the year 9999, a time zone unknown here.
    """
    columns = {}
    for field, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[field] = column.to_pylist()
        except (OverflowError, ValueError) as error:
            values = {"source": name, "field": field, "what": first_line(error)}
            raise UserError(problem("data.column_unreadable", **values)) from error
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _numbered(name: str, batches: Any) -> Iterator[tuple[Where, Any]]:
    index = 0
    for batch in batches:
        _refuse_twice(name, batch.schema.names)
        for row in _rows_of(name, batch):
            yield partial(say, "data.row", source=name, row=index), row
            index += 1


READERS: dict[str, Callable[[str, Path], Iterator[tuple[Where, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
    ".txt": _txt_rows,
}
