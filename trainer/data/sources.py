"""Rows from where the user keeps them: a file, a folder, a data set on disk or on the hub.

    .jsonl     one JSON object a line; blank lines are no rows
    .json      a list of objects, {"data": [...]}, or JSON lines under another name
    .csv       a header, then one row a record; every field is text
    .parquet   one row a record
    folder     the data files in it, sorted by name, or what datasets' save_to_disk wrote (its train split)
    hub id     the train split

A row that cannot be read takes its place as a `BadRow`, so that the indices of the others do not depend on it.
Neither torch nor transformers is imported here; pyarrow and datasets are where they are needed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..errors import Problem, UserError, first_line, problem

Where = Callable[[], str]
# files of datasets' save_to_disk
SAVED = ("state.json", "dataset_dict.json")
# csv's own limit is 128 KiB; C's long is the most it takes
CSV_FIELD_LIMIT = 2**31 - 1


class BadRow(Exception):
    """A row that cannot be used: the catalogue's keys for what is wrong with it, and their values."""

    def __init__(self, *faults: tuple[str, dict[str, Any]]):
        super().__init__(*faults)
        self.faults = faults

    def problems(self, where: Where) -> list[Problem]:
        """The faults in words; `where` names the row."""
        return [problem(key, **{"where": where(), **values}) for key, values in self.faults]


@dataclass(frozen=True)
class Source:
    """A place where rows are.

    Attributes:
        name: as the user gave it.
        files: the data files, in the order in which they are read.
        table: the datasets.Dataset of a hub id or a folder of save_to_disk, else None.
    """

    name: str
    files: tuple[Path, ...]
    table: Any = None

    def rows(self) -> Iterator[tuple[Where, Any]]:
        """Every row in order, with what names it in a message ("data.jsonl line 3").

        Raises:
            UserError: a whole file cannot be read.
        """
        if self.table is not None:
            for index, row in enumerate(self.table):
                yield partial(say, "data.row", source=self.name, row=index), row
            return
        for path in self.files:
            # as the user wrote it: a folder's files keep the folder's spelling
            name = self.name if path.name == Path(self.name).name else str(Path(self.name) / path.name)
            try:
                yield from READERS[path.suffix.lower()](name, path)
            except OSError as error:
                raise UserError(problem("data.unreadable", source=name, what=error.strerror or error)) from error

    def content_hash(self) -> str:
        """64 hex digits that change with the bytes of any file, or with the data set's own fingerprint."""
        digest = hashlib.sha256()
        if not self.files:
            digest.update(f"datasets {self.table._fingerprint}".encode())
        for path in self.files:
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def open_source(name: str) -> Source:
    """Finds out what a name means.

    Raises:
        UserError: there is no such file, no data in the folder, or no such data set.
    """
    path = Path(name).expanduser()
    if path.is_dir() and is_saved(path):
        return _saved(name, path)
    if path.is_dir():
        files = data_files(path)
        if not files:
            raise UserError(problem("data.no_files", source=name, known=", ".join(READERS)))
        return Source(name, files)
    if path.exists() or path.suffix.lower() in READERS:
        if path.suffix.lower() not in READERS:
            raise UserError(problem("data.unknown_kind", source=name, known=", ".join(READERS)))
        return Source(name, (path,))
    return _hub(name)


def data_files(folder: Path) -> tuple[Path, ...]:
    """The data files right in a folder, sorted by name; hidden ones are not data."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in READERS and not path.name.startswith("."))
    return tuple(sorted(path for path in found if path.is_file()))


def is_saved(folder: Path) -> bool:
    """Whether datasets' save_to_disk wrote the folder."""
    return any((folder / name).is_file() for name in SAVED)


def _saved(name: str, folder: Path) -> Source:
    import datasets  # 2 s; only needed here and for the hub

    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises what pyarrow, json and fsspec raise
        raise UserError(problem("data.unreadable", source=name, what=first_line(error))) from error
    part = folder
    if isinstance(table, datasets.DatasetDict):
        if "train" not in table:
            raise UserError(problem("data.no_train_split", source=name, found=", ".join(map(str, table))))
        table, part = table["train"], folder / "train"
    return Source(name, tuple(sorted(part.glob("*.arrow"))), table)


def _hub(name: str) -> Source:
    import datasets

    try:
        return Source(name, (), datasets.load_dataset(name, split="train"))
    except Exception as error:  # the library raises a dozen types for "no such data set" and "no network"
        raise UserError(problem("data.hub", source=name, what=first_line(error))) from error


def _jsonl_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = partial(say, "data.line", source=name, line=number)
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield where, BadRow(("data.not_utf8", {"byte": error.start}))
                continue
            if line.strip():
                yield where, _parsed(line, name, number)


def _parsed(line: str, name: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError without a position
        what = getattr(error, "msg", None) or first_line(error)
        return BadRow(("data.not_json", {"source": name, "line": number, "what": what}))


def _json_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    try:
        content = json.loads(_text(name, path))
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":
            yield from _jsonl_rows(name, path)
            return
        what = first_line(error)
        raise UserError(problem("data.not_json_file", source=name, what=what)) from None
    rows = content.get("data", content) if isinstance(content, dict) else content
    if isinstance(content, dict) and not isinstance(rows, list):
        rows = [content]  # JSON lines of one line
    if not isinstance(rows, list):
        raise UserError(problem("data.not_a_list", source=name, kind=type(content).__name__))
    for index, row in enumerate(rows):
        yield partial(say, "data.row", source=name, row=index), row


def _text(name: str, path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(problem("config.not_utf8", file=name, byte=error.start)) from None


def _csv_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    # strict: a quote that is never closed would swallow the rest of the file as one field
    reader = csv.reader(io.StringIO(_text(name, path), newline=""), strict=True)
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
        elif len(values) != len(header):
            yield where, BadRow(("data.csv_width", {"found": len(values), "expected": len(header)}))
        else:
            yield where, dict(zip(header, values, strict=True))


def _parquet_rows(name: str, path: Path) -> Iterator[tuple[Where, Any]]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    yield partial(say, "data.row", source=name, row=index), row
                    index += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(problem("data.unreadable", source=name, what=first_line(error))) from error


READERS: dict[str, Callable[[str, Path], Iterator[tuple[Where, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
