"""Reads a run folder into pandas frames: the steps, the sites, their statistics. Imports no torch.

    run = load_run("runs/koalpaca")
    run.metrics()                                            # one row per step
    run.stats(sites=r"layers\\.2\\..*:grad_in$", columns=["norm", "n_overflow"], steps=range(500, 513))
    run.exponents("gpt_neox.layers.2.mlp.dense_4h_to_h:out", step=500)

A run may be read while it is written and after a kill: what is torn is left out. Of a step that was run twice the last
`start` counts.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .eval_rows import EvaluationRows, read_rows
from .row_log import read_training_rows
from .schema import COMPUTED, kind_of

from .store import (  # isort: skip
    COLUMNS, EXPONENT_COLUMNS, FLOAT_COLUMNS, METRICS, N_EXPONENTS, SITES, read_metrics, read_sites, stats_files,
    stream_batches, stream_facts, stream_steps, without_repeats,
)  # fmt: skip

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

STATS_COLUMNS = (*COLUMNS, *COMPUTED)
BLOCK_STEPS = 512  # as many as a row group of a compacted file has


def is_gradient(site: str) -> bool:
    """Whether what a site records is multiplied by the loss scale: grad_out, grad_in, <parameter>.grad."""
    return site.rpartition(":")[2] in ("grad_out", "grad_in") or site.endswith(".grad")


def load_run(path: str | Path) -> Run:
    """The run in a folder.

    Raises:
        ValueError: the folder holds no run.
    """
    folder = Path(path)
    if not any((folder / name).is_file() for name in (METRICS, SITES, "config.yaml")):
        raise ValueError(f"{path} holds no run: there is no {METRICS} in it; name the folder of training.output_dir")
    return Run(folder)


@dataclass(frozen=True)
class Run:
    """A run folder; each call reads what is on disk then."""

    path: Path

    def metrics(self) -> pd.DataFrame:
        """The steps of metrics.jsonl, in order; null is NaN."""
        import pandas as pd

        rows = self._step_rows()
        frame = pd.DataFrame(rows, columns=None if rows else ["start", "step"])
        unknown = [column for column in frame.columns if frame[column].isna().all()]
        return frame.astype(dict.fromkeys(unknown, "float64")).sort_values("step", ignore_index=True)

    @property
    def sites(self) -> pd.DataFrame:
        """sites.json with a `name` column, in the order of the ids."""
        import pandas as pd

        columns = ["id", "name", "module", "tensor", "shape", "dtype", "forward_order"]
        return pd.DataFrame([{"name": site.name, **asdict(site)} for site in read_sites(self.path)], columns=columns)

    def evaluation_rows(self, step: int) -> EvaluationRows | None:
        """What each row of the evaluation at a step cost; None where that is not stored."""
        return read_rows(self.path, step)

    def rows(self, steps: Iterable[int] | None = None, shares: bool = False) -> pd.DataFrame:
        """`row_log.read_training_rows`: what each training row added to each step."""
        return read_training_rows(self.path, steps, shares)

    def stats(
        self,
        sites: str | re.Pattern[str] | None = None,
        columns: Sequence[str] | None = None,
        steps: int | Iterable[int] | None = None,
        start: int | None = None,
    ) -> pd.DataFrame:
        """The statistics of some sites at some steps; only what is asked for is read.

        Args:
            sites: a regular expression that is searched for in `module:tensor`.
            columns: from STATS_COLUMNS; None for all. `norm` is sqrt(sumsq), for gradients over the loss scale that
                metrics.jsonl has for the step: 1 where it has none, NaN where the line or the value is missing.
            steps: a step, a range or any other iterable; None for all.
            start: only what that start recorded, overridden since or not; None for the last word on each step.

        Returns:
            `step`, `start`, `site` (a categorical in execution order) and the columns, one row per step and site,
            sorted by both. Counts are nullable integers (Int64), the others float64 with NaN for null.

        Raises:
            ValueError: a column is unknown.
        """
        import pandas as pd
        import pyarrow as pa

        wanted = list(STATS_COLUMNS if columns is None else columns)
        if unknown := [column for column in wanted if column not in STATS_COLUMNS]:
            raise ValueError(f"no such column: {', '.join(unknown)}; there are {', '.join(STATS_COLUMNS)}")
        stored = [column for column in COLUMNS if column in wanted or (column == "sumsq" and "norm" in wanted)]
        parts = self._parts(steps, start)
        pattern = re.compile(sites or "")
        names = dict.fromkeys(name for part in reversed(parts) for name in part.names if pattern.search(name))
        code = {name: at for at, name in enumerate(names)}
        tables = [_read_coded(part, stored, code) for part in parts]
        table = pa.concat_tables([_no_rows(stored), *tables]).sort_by([("step", "ascending"), ("site", "ascending")])
        table = without_repeats(table)
        frame = table.select(stored).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        frame["step"], frame["start"] = table["step"].to_numpy(), table["start"].to_numpy()
        frame["site"] = pd.Categorical.from_codes(
            table["site"].to_numpy(), categories=pd.Index(list(names), dtype="str")
        )
        if "norm" in wanted:
            frame["norm"] = self._norms(frame)
        return frame[["step", "start", "site", *wanted]]

    def blocks(self, columns: Sequence[str], steps: Iterable[int] | None = None) -> Iterator[Block]:
        """The statistics a part at a time, for what must not hold a whole run in memory.

        Args:
            columns: from store.COLUMNS.
            steps: None for all.

        Returns:
            blocks of up to some 500 steps; within one the rows of a site follow each other in order of steps. Of a
            step that was run twice only the last word is there.
        """
        import numpy as np

        parts = self._parts(steps)
        names = list(dict.fromkeys(name for part in reversed(parts) for name in part.names))
        code = {name: at for at, name in enumerate(names)}
        for part in parts:
            codes = np.array([code[name] for name in part.names], np.int64)
            for site, step, values in _site_major(part, columns):
                yield Block(names, codes[site], step, part.start, values)

    def exponents(self, site: str, step: int) -> np.ndarray | None:
        """The histogram of a site's binary exponents: int64 [256], entry e counts exponent field e as fp32.

        Returns:
            None if the step, or the site at that step, has no histogram.

        Raises:
            ValueError: the run has no such site.
        """
        import numpy as np

        if site not in set(self.sites["name"]) | {name for part in self._parts(step) for name in part.names}:
            raise ValueError(f"{self.path} has no site {site}; Run.sites lists them")
        if (found := self.histograms([step], site)[step].get(site)) is None:
            return None
        histogram = np.zeros(N_EXPONENTS, np.int64)
        first, counts = found
        histogram[first : first + len(counts)] = counts
        return histogram

    def histograms(self, steps: Sequence[int], site: str | None = None) -> dict[int, dict[str, tuple[int, list[int]]]]:
        """By step and site the first exponent and the counts from there on; sites without a histogram are left out."""
        found: dict[int, dict[str, tuple[int, list[int]]]] = {step: {} for step in steps}
        for part in self._parts(steps):
            names = [name for name in part.names if site in (None, name)]
            table = _read_coded(part, EXPONENT_COLUMNS, {name: at for at, name in enumerate(names)})
            columns = (table[name].to_pylist() for name in ("step", "site", *EXPONENT_COLUMNS))
            for step, at, first, counts in zip(*columns, strict=True):
                if counts:
                    found[step][names[at]] = first, counts
        return found

    def _step_rows(self) -> list[dict[str, Any]]:
        rows = read_metrics(self.path) if (self.path / METRICS).exists() else []
        return [row for row in rows if kind_of(row) == "step"]

    def _parts(self, steps: int | Iterable[int] | None, start: int | None = None) -> list[_Part]:
        """The files of stats/ that hold these steps, each with those of which it has the last word."""
        files = [file for file in map(_open, stats_files(self.path)) if file and start in (None, file.start)]
        last = {step: number for number, file in enumerate(files) for step in file.steps}
        asked = last if steps is None else set(steps if isinstance(steps, Iterable) else [steps])
        for number, file in enumerate(files):
            file.steps = {step: at for step, at in file.steps.items() if step in asked and last[step] == number}
        return [file for file in files if file.steps]

    def _norms(self, frame: pd.DataFrame) -> np.ndarray:
        """sqrt(sumsq), unscaled for gradients; a start's scale never serves another start's row."""
        import numpy as np
        import pandas as pd

        scales = {(row["start"], row["step"]): row.get("loss_scale", 1.0) for row in self._step_rows()}
        ran = frame[["start", "step"]].drop_duplicates()
        at_step = {step: scales.get((start, step)) for start, step in ran.itertuples(index=False)}
        names = frame["site"].cat.categories
        scaled = np.array([is_gradient(name) for name in names], bool)[frame["site"].cat.codes]
        scale = frame["step"].map(pd.Series(at_step, dtype="float64")).to_numpy()
        norm = np.sqrt(frame["sumsq"].to_numpy())
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(scaled, norm / scale, norm)


@dataclass(frozen=True)
class Block:
    """Rows of statistics.

    Attributes:
        names: of all sites of the run.
        site: index into them, int64 [rows].
        step: int64 [rows].
        start: which recorded them.
        values: float64 [rows] by column, NaN for null.
    """

    names: list[str]
    site: np.ndarray
    step: np.ndarray
    start: int
    values: dict[str, np.ndarray]


@dataclass
class _Part:
    """A file of stats/ and the steps to read from it."""

    path: Path
    start: int
    names: list[str]
    """Of its sites, by id."""
    steps: dict[int, int]
    """Step -> position of its batch, in a stream."""


def _open(path: Path) -> _Part | None:
    """A file with all its steps; None if it has none."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        facts = pq.read_metadata(path).metadata
        steps = dict.fromkeys(_read_compacted(path, ["step"], pc.field("site") == 0)["step"].to_pylist(), 0)
    else:
        stat = path.stat()
        facts, steps = stream_facts(path), dict(_steps_of(path, stat.st_size, stat.st_mtime_ns))
    return _Part(path, int(facts[b"start"]), json.loads(facts[b"sites"]), steps) if facts and steps else None


def _site_major(part: _Part, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Site ids, steps and values of a file, a row group or BLOCK_STEPS batches at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    def floats(table: pa.Table) -> dict[str, np.ndarray]:
        return {name: table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in columns}

    if part.path.suffix == ".parquet":
        with pa.OSFile(str(part.path)) as source:
            file = pq.ParquetFile(source, pre_buffer=False)
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, ["step", "site", *columns], use_threads=False)
                step, site, values = table["step"].to_numpy(), table["site"].to_numpy(), floats(table)
                kept = np.isin(step, np.array(list(part.steps), np.int64))
                if kept.any():
                    yield site[kept], step[kept], {name: column[kept] for name, column in values.items()}
        return
    positions = set(part.steps.values())
    batches = (batch for at, batch in enumerate(stream_batches(part.path, columns)) if at in positions)
    while chunk := list(itertools.islice(batches, BLOCK_STEPS)):
        n_sites = chunk[0].num_rows
        order = np.arange(len(chunk) * n_sites).reshape(len(chunk), n_sites).T.ravel()
        table = pa.Table.from_batches(chunk)
        values = {name: column[order] for name, column in floats(table).items()}
        yield order % n_sites, table["step"].to_numpy()[order], values


@functools.lru_cache(maxsize=8)
def _steps_of(path: Path, _size: int, _mtime_ns: int) -> dict[int, int]:
    """stream_steps, remembered until the file is written on."""
    return stream_steps(path)


def _no_rows(columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    fields = [(name, pa.int64()) for name in ("step", "start", "site")]
    fields += [(name, pa.float64() if name in FLOAT_COLUMNS else pa.int64()) for name in columns]
    return pa.schema(fields).empty_table()


def _read_coded(part: _Part, columns: Sequence[str], code: dict[str, int]) -> pa.Table:
    """`step`, `start`, `site` and the columns of the sites in `code`, which gives each name its number."""
    import numpy as np
    import pyarrow as pa

    ids = np.array([at for at, name in enumerate(part.names) if name in code], np.int64)
    codes = np.array([code.get(name, -1) for name in part.names], np.int64)
    table = (_read_rows if part.path.suffix == ".parquet" else _read_stream)(part, columns, ids)
    site = table["site"].to_numpy()
    keys = {"step": table["step"], "start": np.full(len(site), part.start), "site": codes[site]}
    return pa.table({**keys, **{column: table[column] for column in columns}})


def _read_stream(part: _Part, columns: Sequence[str], ids: np.ndarray) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    positions = set(part.steps.values())
    take = None if len(ids) == len(part.names) else pa.array(ids)
    batches = []
    for at, batch in enumerate(itertools.islice(stream_batches(part.path, columns), max(positions) + 1)):
        if at in positions:
            batches.append(batch if take is None else batch.take(take))
    return pa.Table.from_batches(batches).append_column("site", pa.array(np.tile(ids, len(batches))))


def _read_rows(part: _Part, columns: Sequence[str], ids: np.ndarray) -> pa.Table:
    """From a compacted file; the ranges let Parquet skip row groups, the sets then pick the rows."""
    import pyarrow.compute as pc

    step, site = pc.field("step"), pc.field("site")
    asked = (step >= min(part.steps)) & (step <= max(part.steps)) & step.isin(list(part.steps))
    if len(ids) < len(part.names):
        asked &= (site >= ids.min(initial=len(part.names))) & (site <= ids.max(initial=-1)) & site.isin(ids)
    return _read_compacted(part.path, ["step", "site", *columns], asked)


def _read_compacted(path: Path, columns: list[str], asked: pc.Expression) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # an open file, not its path: from a path a folder called lr=1e-4 would become a column
    with pa.OSFile(str(path)) as file:
        # On one thread: with its pools pyarrow 26 aborts at interpreter exit, in one of ten runs, after a short read.
        return pq.read_table(file, columns=columns, filters=asked, use_threads=False, pre_buffer=False)
