"""What each evaluation row cost, in evaluations/ of a run folder: one Parquet file an evaluation. Imports no torch.

    write_rows(folder, step, start, rows)      evaluations/step-000500.parquet
    read_rows(folder, 500)                     EvaluationRows, or None where there is none

    row       int32    0-based index in the source of the evaluation rows (data.eval, or data.train where a share of
                       it is held out)
    loss_sum  float64  nat: sum of the losses of its supervised tokens
    tokens    int32    how many these are
    hash      uint64   of its token ids and mask: two rows that have it in common are the same row

The sum of loss_sum over the sum of tokens is eval_loss. The schema's metadata has `step`, `start` and `digest`, a
SHA-256 of the hashes in order: two evaluations with the same digest are of the same rows, whatever the run.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

EVALUATIONS = "evaluations"
_NAME = re.compile(r"step-(\d+)\.parquet")
COLUMNS = ("row", "loss_sum", "tokens", "hash")


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of one evaluation, in the order of their source.

    Attributes:
        row: int32 [rows], source index.
        loss_sum: float64 [rows], nat.
        tokens: int32 [rows], supervised tokens.
        hash: uint64 [rows], of token ids and mask.
    """

    row: np.ndarray
    loss_sum: np.ndarray
    tokens: np.ndarray
    hash: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of the hashes in order, 64 hex digits."""
        return hashlib.sha256(self.hash.astype("<u8").tobytes()).hexdigest()


def write_rows(folder: Path, step: int, start: int, rows: EvaluationRows) -> None:
    """Writes an evaluation's rows, whole or not at all; one of an earlier start of the run is replaced.

    Raises:
        OSError: the disk refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / EVALUATIONS / f"step-{step:06}.parquet"
    path.parent.mkdir(exist_ok=True)
    facts = {"step": str(step), "start": str(start), "digest": rows.digest}
    table = pa.table({name: getattr(rows, name) for name in COLUMNS}).replace_schema_metadata(facts)
    partial = path.with_name(path.name + ".tmp")
    try:
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def stored_steps(folder: Path) -> list[int]:
    """Steps whose rows are there, in order."""
    matches = (_NAME.fullmatch(path.name) for path in (folder / EVALUATIONS).glob("step-*.parquet"))
    return sorted(int(match[1]) for match in matches if match)


def read_rows(folder: Path, step: int) -> EvaluationRows | None:
    """The rows of the evaluation at a step; None where they are not stored, or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / EVALUATIONS / f"step-{step:06}.parquet"
    if not path.is_file():
        return None
    try:
        with pa.OSFile(str(path)) as file:  # a folder called lr=1e-4 would become a column
            table = pq.read_table(file, columns=list(COLUMNS), use_threads=False, pre_buffer=False)
        columns = {name: table[name].to_numpy() for name in COLUMNS}
    except (pa.ArrowException, OSError, KeyError):
        return None
    return EvaluationRows(**columns)
