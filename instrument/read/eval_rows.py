"""What each evaluation row cost, in evaluations/ of a run folder: one Parquet file an evaluation. Imports no torch.

    write_rows(folder, step, start, rows)      evaluations/step-000500.parquet
    read_rows(folder, 500)                     EvaluationRows, or None where there is none

EVALUATION_ROWS has the columns. The sum of loss_sum over the sum of n_tokens, or of weight where there is that column,
is eval_loss. The schema's metadata has `step`, `start`, of a classifier `confusion`, and `digest`, a SHA-256 of the
hashes in order: evaluations with the same digest are of the same rows, whatever the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .damaged import damage
from .schema import LOOP, Column

if TYPE_CHECKING:
    import numpy as np

EVALUATIONS = "evaluations"
# Of more classes the matrix would be larger than the rows.
MOST_CLASSES = 200
_NAME = re.compile(r"step-(\d+)\.parquet")
EVALUATION_ROWS = {
    "row": Column("", "Index (from 0) in data.eval, or in data.train where a share of it is held out.",
                  "data.eval의 행 번호(0부터). 일부를 떼어 평가하면 data.train의 행 번호입니다.",
                  writers=(LOOP,), type="int"),
    "loss_sum": Column("nat", "Sum of the losses of its supervised tokens; NaN where it is not finite.",
                       "학습 대상 토큰의 loss를 모두 더한 값. 유한하지 않으면 NaN입니다.", writers=(LOOP,),
                       formula="-sum(log p(token))", type="float"),
    "n_tokens": Column("tokens", "Its supervised tokens.", "학습 대상 토큰 수.", writers=(LOOP,), type="int"),
    "hash": Column("", "Of its token ids and mask, 64 bits: rows that have it in common are the same row.",
                   "토큰과 마스크의 64비트 해시. 해시가 같으면 같은 행입니다.", writers=(LOOP,), type="int"),
    "n_correct": Column("", "Of a classifier: how many of its labels were answered right; else the column is missing.",
                        "분류 모델: 맞힌 레이블 수. 다른 과제에는 이 열이 없습니다.", writers=(LOOP,), type="int"),
    "weight": Column("", "With class weights: what the row counts in eval_loss; else the column is missing.",
                     "클래스 가중치를 쓸 때 그 행이 eval_loss에서 차지하는 비중. 쓰지 않으면 이 열이 없습니다.",
                     writers=(LOOP,), type="float"),
}  # fmt: skip
"""The columns of a file, in their order there."""
COLUMNS = tuple(EVALUATION_ROWS)


@dataclass(frozen=True)
class Confusion:
    """How often each class (a row) was taken for each (a column): counts, of as many rows and columns as labels."""

    labels: list[str]
    counts: list[list[int]]

    @classmethod
    def of(cls, text: bytes) -> Confusion | None:
        """What a file says; None where it is damaged."""
        try:
            found = json.loads(text)
            labels, counts = [str(name) for name in found["labels"]], found["counts"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        n = len(labels)
        square = isinstance(counts, list) and len(counts) == n and all(isinstance(row, list) for row in counts)
        if not n or not square or any(len(row) != n or any(type(c) is not int or c < 0 for c in row) for row in counts):
            return None
        return cls(labels, counts)


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of one evaluation, in the order of their source.

    Attributes:
        row: int32 [rows], source index.
        loss_sum: float64 [rows], nat.
        n_tokens: int32 [rows], supervised tokens.
        hash: uint64 [rows], of token ids and mask.
        n_correct: int32 [rows], right answers of a classifier; None of other tasks.
        weight: float64 [rows], what they count where classes have weights; None: as many as their tokens.
        confusion: of a classifier with one class a row or word.
    """

    row: np.ndarray
    loss_sum: np.ndarray
    n_tokens: np.ndarray
    hash: np.ndarray
    n_correct: np.ndarray | None = None
    weight: np.ndarray | None = None
    confusion: Confusion | None = None

    @property
    def weights(self) -> np.ndarray:
        """float64 [rows]: what each row counts in a mean."""
        return self.n_tokens.astype("float64") if self.weight is None else self.weight

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
    if rows.confusion is not None and len(rows.confusion.labels) <= MOST_CLASSES:
        facts["confusion"] = json.dumps(vars(rows.confusion), ensure_ascii=False)
    columns = {name: getattr(rows, name) for name in COLUMNS}
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    table = table.replace_schema_metadata(facts)
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
            table = pq.read_table(file, use_threads=False, pre_buffer=False)
        text = (table.schema.metadata or {}).get(b"confusion")
        columns = {name: table[name].to_numpy() for name in COLUMNS if name in table.column_names}
        return EvaluationRows(**columns, confusion=None if text is None else Confusion.of(text))
    except damage():  # or a column is missing
        return None
