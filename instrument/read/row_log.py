"""What each training row added to each step, in rows/ of a run folder: one Arrow stream a start, and at the end one
Parquet file. Imports no torch.

    RowsWriter(folder, start, modules, whole).write(columns, shares)      rows/start-<n>.arrows
    compact_rows(folder)                                                  rows/start-<n>.parquet
    read_training_rows(folder)                                            a frame, one row for each row of a step

TRAINING_ROWS has the columns. `shares` is a list of as many numbers as modules, whose names are in the schema's
metadata, on the steps that have them. A step that was run twice is what its last start says. Files are to stay below
6 MB for 10,000 steps of 16 rows with the shares of 210 modules every 100 steps; a test holds a fifth of that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .damaged import damage
from .files import open_own
from .schema import LOOP, Column, Null

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

ROWS = "rows"
_NAME = re.compile(r"start-(\d+)(?:\.(\d+))?\.(arrows|parquet)")
_NOT_TOLD_APART = Null(
    "a module computed in a way that does not tell rows apart", "행을 구별하지 못하는 방식으로 계산한 모듈이 있을 때"
)
_NOT_THIS_STEP = Null(
    "all but every instrument.rows_every-th step, for modules that instrument.row_modules does not name",
    "instrument.rows_every 스텝이 아니고 instrument.row_modules에도 없는 모듈일 때",
)
_NOT_THIS_STEP_ALONG = Null(
    "all but every instrument.rows_every-th step, and where sumsq is null",
    "instrument.rows_every 스텝이 아니거나 sumsq가 없을 때",
)
TRAINING_ROWS = {
    name: Column(unit, en, ko, null, formula, (LOOP,), kind)
    for name, unit, kind, formula, null, en, ko in (
        ("step", "", "int", "", None, "The attempted step.", "시도한 스텝."),
        ("micro_batch", "", "int", "", None, "Number of its micro-batch, from 0.", "마이크로배치 번호(0부터)."),
        ("process", "", "int", "", None, "Rank of its process.", "프로세스 번호."),
        ("row", "", "int", "", None, "Index (from 0) in data.train.", "data.train의 행 번호(0부터)."),
        ("n_tokens", "tokens", "int", "", None, "Its tokens, without padding.", "패딩을 뺀 토큰 수."),
        ("n_supervised", "tokens", "int", "", None, "Those that are trained on; of a classifier its labels.",
         "학습 대상 토큰 수. 분류 모델에서는 레이블 수입니다."),
        ("loss_sum", "nat", "float", "-sum(log p(token))", None,
         "Sum of the losses of its supervised tokens; NaN or inf where one is.",
         "학습 대상 토큰의 loss를 모두 더한 값. 유한하지 않으면 NaN이나 inf입니다."),
        ("sumsq", "", "float", "sum(|dA_r|^2 + |dB_r|^2)", _NOT_TOLD_APART,
         "Squared norm of what the row adds to the step's gradient, over every fused LoRA matrix, before clipping and "
         "without the loss scale; NaN or inf where a value is.",
         "이 행이 스텝의 그래디언트에 더한 것의 노름 제곱. fused LoRA 행렬 전체, 클리핑 전, loss scale이 곱해지지 않은 "
         "값이며 유한하지 않으면 NaN이나 inf입니다."),
        ("along", "", "float", "g_r . g_m", _NOT_THIS_STEP_ALONG,
         "Inner product of what the row adds with the sum of what all rows of its micro-batch on its process add: "
         "sumsq, and what the others have in common with it; NaN or inf where any of them is.",
         "이 행이 더한 것과, 같은 프로세스의 마이크로배치에 든 모든 행이 더한 것의 합을 내적한 값. sumsq에 다른 행과 "
         "겹치는 몫을 더한 것이며, 그중 하나라도 유한하지 않으면 NaN이나 inf입니다."),
        ("shares", "", "list", "", _NOT_THIS_STEP, "sumsq of each module.", "모듈마다 구한 sumsq."),
    )
}  # fmt: skip
"""The columns of a file, in their order there."""
_INTEGERS = {"step": "int32", "micro_batch": "int16", "process": "int16", "row": "int32", "n_tokens": "int32",
             "n_supervised": "int32"}  # fmt: skip
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": list(_INTEGERS),
    "use_byte_stream_split": ["loss_sum", "sumsq", "along", "shares.list.element"],
}


class RowsWriter:
    """Appends one record batch per step to a stream of its own; a kill costs at most the step in flight."""

    def __init__(self, run_dir: Path, start: int, modules: Sequence[str], whole: bool):
        """Opens a new stream.

        Args:
            start: resumes and rollbacks so far.
            modules: whose gradients are in the squares, in the order of the shares.
            whole: whether those are all that are trained.

        Raises:
            OSError: the disk refused.
        """
        import pyarrow as pa

        facts = {"start": str(start), "modules": json.dumps(list(modules)), "whole": json.dumps(whole)}
        self._schema = _schema(facts)
        self._n_modules = len(modules)
        folder = run_dir / ROWS
        folder.mkdir(exist_ok=True)
        parts = [part for path in row_files(run_dir) for number, part in [_order(path)] if number == start]
        suffix = f".{max(parts) + 1}" if parts else ""
        self._file = (folder / f"start-{start}{suffix}.arrows").open("xb", buffering=1 << 16)
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._stream = pa.ipc.new_stream(self._file, self._schema, options=options)
        self._file.flush()

    def write(self, columns: Mapping[str, Sequence[Any] | np.ndarray], shares: np.ndarray | None = None) -> None:
        """Writes the rows of one step.

        Args:
            columns: all of TRAINING_ROWS but shares, [rows] each, and `known`: where sumsq is not null; along only
                on the steps that have it.
            shares: float [rows, modules], NaN where it is not kept, or None.

        Raises:
            OSError: the disk refused; nothing more can be written, what was written before is kept.
        """
        import numpy as np
        import pyarrow as pa

        n = len(columns["step"])
        arrays = [pa.array(np.asarray(columns[name], kind)) for name, kind in _INTEGERS.items()]
        arrays.append(pa.array(np.asarray(columns["loss_sum"], "float32")))
        unknown = ~np.asarray(columns["known"], bool)
        for name in ("sumsq", "along"):
            values = columns.get(name)
            known = values is not None
            arrays.append(pa.array(np.asarray(values, "float32"), mask=unknown) if known else pa.nulls(n, pa.float32()))
        kind = self._schema.field("shares").type
        if shares is None:
            arrays.append(pa.nulls(n, kind))
        else:
            flat = np.ascontiguousarray(shares, "float32").reshape(-1)
            offsets = np.arange(n + 1, dtype="int32") * self._n_modules
            values = pa.array(flat, mask=np.isnan(flat))
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets), values).cast(kind))
        self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._file.flush()

    def abandon(self) -> None:
        """Closes after a write that failed: readers drop the torn end."""
        with contextlib.suppress(OSError):
            self._file.close()

    def close(self) -> None:
        """Ends the stream, syncs to disk and closes."""
        self._stream.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _schema(facts: Mapping[str, str] | None = None) -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in _INTEGERS.items()]
    fields += [pa.field(name, pa.float32()) for name in ("loss_sum", "sumsq", "along")]
    fields.append(pa.field("shares", pa.list_(pa.float32())))
    return pa.schema(fields, metadata=facts)


def row_files(run_dir: Path) -> list[Path]:
    """The files of rows/, oldest first; a stream that is compacted already counts once, as the compacted file."""
    found = {}
    for path in (run_dir / ROWS).glob("start-*"):
        if _NAME.fullmatch(path.name) and (path.suffix == ".parquet" or path.stem not in found):
            found[path.stem] = path
    return sorted(found.values(), key=_order)


def _order(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1]), int(match[2] or 0)


def compact_rows(run_dir: Path) -> None:
    """Turns every stream of a run that no process writes into a Parquet file; a stream goes when its file stands.

    Raises:
        OSError: the disk refused; the stream is still there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in row_files(run_dir):
        if path.suffix == ".arrows" and (batches := _read_stream(path)):
            target = path.with_suffix(".parquet")
            partial = target.with_name(target.name + ".tmp")
            with partial.open("wb") as file:
                pq.write_table(pa.Table.from_batches(batches), file, **_ENCODING)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
    for path in (run_dir / ROWS).glob("start-*.arrows"):
        if path.with_suffix(".parquet").exists():
            path.unlink()


def _read_stream(path: Path) -> list[pa.RecordBatch]:
    """The whole steps of a stream; a torn tail ends it."""
    import pyarrow as pa

    batches = []
    try:
        with open_own(path) as file:
            for batch in pa.ipc.open_stream(file):
                batch.validate()
                batches.append(batch)
    except damage():
        pass
    return batches


def read_training_rows(run_dir: str | Path, steps: Iterable[int] | None = None, shares: bool = False) -> pd.DataFrame:
    """What each row added to each step, in order of steps, micro-batches and processes.

    Args:
        steps: None for all.
        shares: whether to read `shares` too: a list a row, or None; `attrs["modules"]` has the names.

    Returns:
        the columns of TRAINING_ROWS, `start`, and
            loss         loss_sum / n_supervised
            grad_norm    of the row's mean loss: sqrt(sumsq) N / n_supervised, N the n_supervised of the whole step
        `attrs["whole"]` is False where trained matrices are not among the squares. No rows where nothing is stored;
        what cannot be read is left out.
    """
    import numpy as np
    import pyarrow as pa

    tables, modules, whole = [], [], True
    for path in row_files(Path(run_dir)):
        table = _read_file(path, shares)
        modules, own = _facts(table.schema.metadata or {})
        whole = whole and own
        start = pa.array(np.full(table.num_rows, _order(path)[0], np.int32))
        tables.append(table.replace_schema_metadata(None).append_column("start", start))
    names = [name for name in TRAINING_ROWS if shares or name != "shares"]
    empty = pa.schema([field for field in _schema() if field.name in names] + [("start", pa.int32())]).empty_table()
    frame = pa.concat_tables([empty, *tables]).to_pandas()
    order = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    last = frame.assign(file=order).groupby("step")["file"].transform("max").to_numpy() if len(frame) else order
    frame = frame[order == last]
    if steps is not None:
        frame = frame[frame["step"].isin(set(steps))]
    frame = frame.sort_values(["step", "micro_batch", "process"], kind="stable", ignore_index=True)
    total = frame.groupby("step")["n_supervised"].transform("sum").to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["loss"] = frame["loss_sum"].to_numpy("float64") / frame["n_supervised"].to_numpy()
        frame["grad_norm"] = np.sqrt(frame["sumsq"].to_numpy("float64")) * total / frame["n_supervised"].to_numpy()
    frame.attrs |= {"modules": modules, "whole": bool(whole)}
    return frame


def _facts(metadata: Mapping[bytes, bytes]) -> tuple[list[str], bool]:
    """The modules of the shares, and whether all that is trained is among the squares; damaged, none and no."""
    try:
        modules, whole = (
            json.loads(metadata.get(key, value)) for key, value in ((b"modules", "[]"), (b"whole", "true"))
        )
    except (ValueError, RecursionError):
        return [], False
    return list(map(str, modules)) if isinstance(modules, list) else [], bool(whole)


def _read_file(path: Path, shares: bool) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in TRAINING_ROWS if shares or name != "shares"]
    try:
        if path.suffix == ".parquet":
            with pa.OSFile(str(path)) as file:  # a folder called lr=1e-4 would become a column
                known = [name for name in names if name in pq.read_schema(file).names]
                return _select(pq.read_table(file, columns=known, use_threads=False, pre_buffer=False), names)
        batches = _read_stream(path)
        return _select(pa.Table.from_batches(batches) if batches else _schema().empty_table(), names)
    except damage():
        return _schema().empty_table().select(names)


def _select(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """These columns; `along` is null where an older version wrote none.

    Raises:
        KeyError: another is missing.
    """
    import pyarrow as pa

    if "along" not in table.schema.names:
        table = table.append_column("along", pa.nulls(table.num_rows, pa.float32()))
    return table.select(names)
