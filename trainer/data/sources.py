"""Rows from where the user keeps them: files, a folder, a data set on disk or on the hub.

    file       by the kind its name ends in, see readers.py; *, ? and [] in a name stand for all files that fit
    folder     the data files right in it, of one split and sorted by name, or what save_to_disk wrote (its train split)
    hub id     the train split
    list       of any of the files and folders, one behind the other

Neither torch nor transformers is imported here; pyarrow and datasets are where they are needed.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..config.names import at_home
from ..errors import UserError, first_line, problem
from .readers import READERS, BadRow, Where, kind_of, read_rows

__all__ = ["READERS", "BadRow", "Source", "Where", "data_files", "globbed", "is_saved", "open_source", "source_name"]

# files of datasets' save_to_disk
SAVED = ("state.json", "dataset_dict.json")
# Of a folder these are read, and only where there is none of them the others: a README.txt is no data, and
# rows.jsonl.gz beside rows.jsonl is the same rows again.
FIRST_IN_FOLDERS = (".jsonl", ".json", ".csv", ".parquet")
# What files of a folder begin with where train.* is not all there is to train on.
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
# Files of a folder that are named in a hint.
SHOWN = 3


@dataclass(frozen=True)
class Source:
    """A place where rows are.

    Attributes:
        name: as the user gave it.
        files: the data files, in the order in which they are read.
        table: the datasets.Dataset of a hub id or a folder of save_to_disk, else None.
        names: of the files in messages; empty: the source's own name, and in a folder what lies in it.
    """

    name: str
    files: tuple[Path, ...]
    table: Any = None
    names: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[Where, Any]]:
        """Every row in order, with what names it in a message ("data.jsonl line 3").

        Raises:
            UserError: a whole file cannot be read.
        """
        if self.table is not None:
            for index, row in enumerate(self.table):
                yield partial(say, "data.row", source=self.name, row=index), row
            return
        for index, path in enumerate(self.files):
            # as the user wrote it: a folder's files keep the folder's spelling
            own = self.name if path.name == Path(self.name).name else str(Path(self.name) / path.name)
            yield from read_rows(self.names[index] if self.names else own, path)

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


def source_name(value: str | Sequence[str]) -> str:
    """What a source is called in a message: its name, or those of its parts."""
    return value if isinstance(value, str) else ", ".join(value)


def open_source(value: str | Sequence[str]) -> Source:
    """Finds out what a name, or a list of names, means.

    Raises:
        UserError: there is no such file, no data in the folder, or no such data set.
    """
    if not isinstance(value, str):
        parts = [open_source(name) for name in value]
        tables = [part.name for part in parts if part.table is not None]
        if tables:
            raise UserError(problem("data.table_in_list", source=", ".join(tables)))
        files = [(path, _name_of(part, index)) for part in parts for index, path in enumerate(part.files)]
        return Source(source_name(value), tuple(path for path, _ in files), names=tuple(name for _, name in files))
    name, path = value, at_home(value)
    if path.is_dir() and is_saved(path):
        return _saved(name, path)
    if path.is_dir():
        files = data_files(path)
        if not files:
            raise UserError(problem("data.no_files", source=name, known=", ".join(READERS)))
        _refuse_splits(name, files)
        return Source(name, files)
    if not path.exists() and glob.has_magic(name):
        files = globbed(name)
        if not files:
            raise UserError(problem("data.no_match", source=name))
        return Source(name, files, names=tuple(map(str, files)))
    if path.exists() and not path.is_file():  # a pipe would wait for whoever writes, a device might never end
        raise UserError(problem("data.no_regular_file", source=name))
    if path.exists() or kind_of(path):
        if not kind_of(path):
            raise UserError(problem("data.unknown_kind", source=name, known=", ".join(READERS)))
        return Source(name, (path,))
    return _hub(name)


def _name_of(part: Source, index: int) -> str:
    if part.names:
        return part.names[index]
    path = part.files[index]
    return part.name if path.name == Path(part.name).name else str(Path(part.name) / path.name)


def globbed(pattern: str) -> tuple[Path, ...]:
    """The data files that a pattern stands for, sorted by name."""
    return _whole(Path(name) for name in glob.glob(str(at_home(pattern)), recursive=True))


def data_files(folder: Path) -> tuple[Path, ...]:
    """The data files right in a folder, sorted by name; hidden ones are not data."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return _whole(path for path in found if path.suffix.lower() in FIRST_IN_FOLDERS) or _whole(found)


def _whole(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Those that are data files, sorted by name.

    Raises:
        UserError: one of them is called so and cannot be read: its rows would be missing in silence.
    """
    files = sorted(path for path in paths if kind_of(path) and not path.is_dir())
    for path in files:
        if not path.exists():
            raise UserError(problem("data.lost_link", source=path))
        if not path.is_file():
            raise UserError(problem("data.no_regular_file", source=path))
    return tuple(files)


def _refuse_splits(name: str, files: Sequence[Path]) -> None:
    """Refuses a folder that holds rows to test on beside those to train on: train.jsonl, test-0-of-2.parquet."""
    parts = {path.name: re.split(r"[-.]", path.name.lower())[0] for path in files}
    others = [file for file, part in parts.items() if part in SPLITS - {"train"}]
    train = [file for file, part in parts.items() if part == "train"]
    if others and train:
        own = ", ".join(str(Path(name) / file) for file in train[:SHOWN]) + (" ..." if len(train) > SHOWN else "")
        raise UserError(problem("data.several_splits", source=name, found=", ".join(others), train=own))


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

    from ..hub import data_set_error, limit_first_answer, refusal

    limit_first_answer()
    try:
        return Source(name, (), datasets.load_dataset(name, split="train"))
    except Exception as error:  # the library raises a dozen types for "no such data set" and "no network"
        raise UserError(refusal("data.hub", data_set_error(name) or error, name, "dataset", source=name)) from error
