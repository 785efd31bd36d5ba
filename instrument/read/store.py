"""Writes a run on disk: metrics.jsonl, sites.json and stats/. Imports no torch; `load` reads the run as frames.

metrics.jsonl holds one JSON object a line: a step, an evaluation, or the summary of a run; schema.py lists the
columns. A value that is not finite is written as null, never filtered. Every line carries `start`, the number of
resumes so far; of a step that was run twice the reader keeps the last.

sites.json lists the sites: id -> module, tensor, shape, dtype, forward order.

stats/start-<n>.arrows is an Arrow IPC stream, one per start, one record batch per step, written as the run goes. Row
i of a batch is site i; the columns are COLUMNS, on histogram steps the exponents, and `step`. The names of the
sites and the start are in the schema's metadata, so a stream stays readable when a resumed run watches others.
At the end `compact` turns each stream into stats/start-<n>.parquet.

10,000 steps of 1,120 fp16 sites with a histogram every 100 take 333 MB live (29.8 bytes a site and step) and 152 MB
(13.6 bytes) compacted; the noise in the numbers themselves is nearly all of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .damaged import damage, parse_own_json
from .files import open_own, read_own, write_text
from .schema import EXPONENTS, STATISTICS, kind_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SCHEMA_VERSION = 1
METRICS = "metrics.jsonl"
SITES = "sites.json"
STATS = "stats"

COLUMNS = tuple(STATISTICS)
FLOAT_COLUMNS = tuple(name for name, column in STATISTICS.items() if column.type == "float")
"""float64 with 24 mantissa bits, the other columns are int64: see `rounded`."""
EXPONENT_COLUMNS = tuple(EXPONENTS)
"""A histogram without the zeros at its ends: the exponent of the first count, and the counts."""
N_EXPONENTS = 256

_MANTISSA_BITS = 24
_STATS_FILE = re.compile(r"start-(\d+)(?:\.(\d+))?\.(arrows|parquet)")


class MetricsLog:
    """Appends lines to metrics.jsonl, each flushed, so that a killed run keeps all but the step in flight."""

    def __init__(self, run_dir: Path, start: int):
        self._start = start
        path = run_dir / METRICS
        _end_torn_line(path)
        self._file = path.open("ab", buffering=0)

    def write(self, values: dict[str, Any]) -> None:
        """Writes one line; floats that are not finite become null.

        Raises:
            OSError: the disk refused; nothing of the line is left where the disk allows that.
        """
        clean = {key: _finite_or_none(value) for key, value in {"start": self._start, **values}.items()}
        line = (json.dumps(clean, allow_nan=False) + "\n").encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            while line:  # a full disk takes a part of it before it refuses
                line = line[self._file.write(line) :]
        except OSError:
            with contextlib.suppress(OSError):  # what the disk said first is the reason
                self._file.truncate(size)
            raise

    def close(self) -> None:
        """Syncs to disk and closes."""
        os.fsync(self._file.fileno())
        self._file.close()


def _end_torn_line(path: Path) -> None:
    """A kill can cut a line short; end it, so that the next line stands on its own."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(run_dir: str | Path, start: int | None = None, every_start: bool = False) -> list[dict[str, Any]]:
    """All lines of a run in order, torn ones dropped, the last `start` of each step and evaluation kept.

    With `start` only the lines of that start; with `every_start` those of each, the last of a step and a start.
    """
    kept: dict[tuple, dict[str, Any]] = {}
    for line in read_own(Path(run_dir) / METRICS, errors="replace").splitlines():
        try:
            row = parse_own_json(line)
        except (ValueError, RecursionError):  # not JSON, a number too large, too deep
            continue
        if (
            not isinstance(row, dict)
            or not (isinstance(row.get("step"), (int, type(None))) and isinstance(row.get("start", 0), int))
            or (start is not None and row.get("start") != start)
        ):
            continue
        kind = kind_of(row)
        # one step may be evaluated on several sets, each a line with keys of its own
        measured = sorted(key for key in row if key.startswith("eval_")) if kind == "evaluation" else ()
        key = (kind, row.get("step"), row.get("start") if every_start else None, *measured)
        kept.pop(key, None)
        kept[key] = row
    return list(kept.values())


@dataclass(frozen=True)
class Site:
    """One watched tensor."""

    id: int
    """Its row in every batch of stats/."""
    module: str
    """Named as in the base model."""
    tensor: str
    """in, out, grad_out, grad_in, or <parameter>.grad: lora_A.grad, lora_B.grad, weight.grad, ..."""
    shape: tuple[int, ...] | None
    """None where it changes from step to step."""
    dtype: str
    forward_order: int

    @property
    def name(self) -> str:
        return f"{self.module}:{self.tensor}"


def write_sites(run_dir: Path, sites: Sequence[Site]) -> None:
    """Writes sites.json, whole. Ids count from 0 in the order of `sites`."""
    assert [site.id for site in sites] == list(range(len(sites)))
    lines = ",\n".join("  " + json.dumps(asdict(site), ensure_ascii=False) for site in sites)
    text = f'{{"schema_version": {SCHEMA_VERSION}, "sites": [\n{lines}\n]}}\n'
    write_text(run_dir / SITES, text)


def read_sites(run_dir: Path) -> list[Site]:
    """The sites of sites.json; none if the run has no such file."""
    path = run_dir / SITES
    if not path.exists():
        return []
    sites = json.loads(read_own(path))["sites"]
    return [Site(**{**site, "shape": site["shape"] and tuple(site["shape"])}) for site in sites]


class StatsWriter:
    """Appends one record batch per step to a stream of its own; what is written is never touched again.

    Each step reaches the operating system before `write` returns: a SIGKILL costs at most the step in flight.
    """

    def __init__(self, run_dir: Path, start: int, n_sites: int):
        """Opens a new stream; sites.json must be written before.

        Args:
            run_dir: the run folder.
            start: resumes and rollbacks so far. If it has a stream already, the new one gets a name of its own.
            n_sites: rows of each step.
        """
        import pyarrow as pa

        names = [site.name for site in read_sites(run_dir)]
        assert len(names) == n_sites, f"sites.json lists {len(names)} sites, the stream is to hold {n_sites}"
        self._n_sites = n_sites
        self._schema = _stream_schema(start, names)
        self._no_exponents = [pa.nulls(n_sites, field.type) for field in map(self._schema.field, EXPONENT_COLUMNS)]
        self._file = _fresh_stream(run_dir, start).open("xb", buffering=1 << 20)
        # lz4: half of zstd's time in the training process (0.6 against 1.1 ms for 1,120 sites) for 1.5x its bytes
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._stream = pa.ipc.new_stream(self._file, self._schema, options=options)
        self._file.flush()

    def write(self, step: int, rows: np.ndarray, exponents: np.ndarray | None = None) -> None:
        """Writes one step. A step may be written again; readers keep the last.

        Args:
            step: the attempted step, from 1.
            rows: float64 [n_sites, len(COLUMNS)], NaN for null.
            exponents: int64 [n_sites, 256] on histogram steps. A row of zeros is null: a tensor without values, or
                a site without a histogram.

        Raises:
            OSError: the disk refused; nothing more can be written, what was written before is kept.
        """
        import numpy as np
        import pyarrow as pa

        assert rows.shape == (self._n_sites, len(COLUMNS)), rows.shape
        arrays = []
        for column, values in zip(COLUMNS, np.ascontiguousarray(rows.T), strict=True):
            null = np.isnan(values)
            values = np.where(null, 0.0, values)
            values = rounded(values) if column in FLOAT_COLUMNS else values.astype(np.int64)
            arrays.append(pa.array(values, mask=null))
        arrays += self._no_exponents if exponents is None else _sparse(exponents)
        arrays.append(pa.array(np.full(self._n_sites, step, np.int64)))
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


def _stream_schema(start: int, names: list[str]) -> pa.Schema:
    import pyarrow as pa

    fields = [(column, pa.float64() if column in FLOAT_COLUMNS else pa.int64()) for column in COLUMNS]
    fields += [("exponent_first", pa.int64()), ("exponent_counts", pa.list_(pa.int64())), ("step", pa.int64())]
    facts = {"schema_version": str(SCHEMA_VERSION), "start": str(start), "sites": json.dumps(names)}
    return pa.schema(fields, metadata=facts)


def _fresh_stream(run_dir: Path, start: int) -> Path:
    """stats/start-<n>.arrows; if the start has files already, start-<n>.1.arrows, .2 and so on."""
    folder = run_dir / STATS
    folder.mkdir(exist_ok=True)
    parts = [part for path in stats_files(run_dir) for number, part in [file_order(path)] if number == start]
    suffix = f".{max(parts) + 1}" if parts else ""
    return folder / f"start-{start}{suffix}.arrows"


def rounded(values: np.ndarray) -> np.ndarray:
    """float64 rounded to 24 mantissa bits, half away from zero.

    The relative error of a norm is at most 2^-26 (1.5e-8), every fp16, bf16 and fp32 value is exact, the range is that
    of fp64 (a sum of squares leaves that of fp32), and the three bytes of zeros compress to nothing.
    """
    import numpy as np

    dropped = 52 - _MANTISSA_BITS
    bits = values.view(np.int64) + (1 << (dropped - 1))
    return (bits & -(1 << dropped)).view(np.float64)


def _sparse(exponents: np.ndarray) -> list[pa.Array]:
    """EXPONENT_COLUMNS of int64 [n_sites, 256]."""
    import numpy as np
    import pyarrow as pa

    counted = exponents != 0
    null = ~counted.any(1)
    first = counted.argmax(1)
    last = N_EXPONENTS - counted[:, ::-1].argmax(1)
    at = np.arange(N_EXPONENTS)
    inside = (at >= first[:, None]) & (at < last[:, None]) & ~null[:, None]
    offsets = np.concatenate([[0], inside.sum(1).cumsum()]).astype(np.int32)
    counts = pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(exponents[inside].astype(np.int64)), mask=pa.array(null)
    )
    return [pa.array(first.astype(np.int64), mask=null), counts]


def stats_files(run_dir: Path) -> list[Path]:
    """The files of stats/, oldest first. A stream that is compacted already counts once, as the compacted file."""
    found = {}
    for path in (run_dir / STATS).glob("start-*"):
        if _STATS_FILE.fullmatch(path.name) and (path.suffix == ".parquet" or path.stem not in found):
            found[path.stem] = path
    return sorted(found.values(), key=file_order)


def file_order(path: Path) -> tuple[int, int]:
    """(start, part) of a file of stats/; later ones override."""
    match = _STATS_FILE.fullmatch(path.name)
    assert match
    return int(match[1]), int(match[2] or 0)


def stream_facts(path: Path) -> dict[bytes, bytes] | None:
    """The metadata of a stream; None if a kill tore even that."""
    import pyarrow as pa

    try:
        with open_own(path) as file:
            return pa.ipc.open_stream(file).schema.metadata
    except damage():
        return None


def stream_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The whole steps of a stream in the order they were written, `step` and some columns; a torn tail ends it.

    What follows the last whole byte may be nothing (a kill), zeros or noise (a power loss). `step` is the last column
    of a batch, so that a batch whose `step` is right is whole.
    """
    import pyarrow as pa

    if stream_facts(path) is None:
        return
    with pa.memory_map(str(path)) as source:
        try:
            names = pa.ipc.read_schema(source).names
            source.seek(0)
            included = [names.index(column) for column in (*columns, "step")]
            options = pa.ipc.IpcReadOptions(included_fields=included, use_threads=False)
            reader = pa.ipc.open_stream(source, options=options)
            while True:
                batch = reader.read_next_batch()
                batch.validate()
                step = batch["step"].to_numpy()
                if not len(step):  # of a run without sites
                    continue
                if step[0] < 1 or (step != step[0]).any():
                    return
                yield batch
        except (StopIteration, *damage()):
            return


def stream_steps(path: Path) -> dict[int, int]:
    """Step -> position of its last batch in the stream."""
    return {batch["step"][0].as_py(): at for at, batch in enumerate(stream_batches(path, []))}


def without_repeats(table: pa.Table) -> pa.Table:
    """The last row of each step and site of a table that is sorted by both: a damaged file may have more."""
    step, site = table["step"].to_numpy(), table["site"].to_numpy()
    last = (step[1:] != step[:-1]) | (site[1:] != site[:-1])
    return table if last.all() else table.filter([*last, True])
