"""What every format is read into, and how a History is made of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..history import COLUMNS, PRINTED, PROGRESS, History, SourceError
from .bars import Bar, seconds
from .marks import task_of, trainer_of
from .numbering import fill_steps, steps_per_epoch
from .values import MOST_STEPS, PLANNED_KEYS, STEP_KEYS, Record, evaluation, is_step, is_summary

if TYPE_CHECKING:
    import pandas as pd

# Keys of a line of steps that are no measurement.
NOT_MEASURED = {*STEP_KEYS, *PLANNED_KEYS, "percentage", "epochs", "train_runtime"} - {"step"}
# Of float32: the largest number, and the smallest that is not 0.
LARGEST, SMALLEST = 2.0**128 - 2.0**104, 2.0**-149


@dataclass
class Log:
    """The records of one source in its order, and what it says of the run as a whole.

    Attributes:
        records: see values.py; `step` where it is known.
        text: the words around them, which tell the program and the task.
        planned, reached: steps the run was to make, and made.
        epochs: epochs the run was to make.
        every: the logging interval.
        finished, stopped_early: as of History; None where the source does not say.
        best: step and value of the best evaluation.
        config: {"training": {key: value}}.
        bars: states of the training's progress bar.
        partial: whether a step's numbers are spread over several records: one file or column a number.
    """

    records: list[Record]
    text: str = ""
    planned: int | None = None
    reached: int | None = None
    epochs: float | None = None
    every: int | None = None
    finished: bool | None = None
    stopped_early: bool = False
    best: tuple[int, float] | None = None
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    bars: Sequence[Bar] = ()
    partial: bool = False


def to_history(name: str, kind: str, log: Log) -> History:
    """The history of a log.

    Raises:
        SourceError: it holds no step; says what it holds instead.
    """
    records = log.records
    if not any(is_step(record) for record in records):
        raise SourceError(_why_none(records), path=name)
    keys = {key for record in records for key in record}
    trainer = trainer_of(keys, log.text)
    if trainer == "llamafactory":
        records = [{key: value for key, value in record.items() if value is not None} for record in records]
        records = [record for record in records if is_step(record) or is_summary(record) or evaluation(record)]
    said = [record for record in log.records if isinstance(record.get("step"), float)]
    per_epoch = steps_per_epoch(records, *_pace(log))
    numbered = fill_steps(records, per_epoch, log.every)
    steps, evals, lost = _frames(records, log.partial)
    task = task_of({key for record in records for key in record}, log.text, trainer)
    summary = next((record for record in reversed(records) if is_summary(record)), {})
    history = History(name, kind, steps, evals, config=log.config, trainer=trainer, numbered=numbered)
    history.task, history.task_known = task or "causal_lm", task is not None
    history.nan_evals, history.best, history.progress = lost, log.best, _progress(log.bars, log.records)
    history.summary = totals(summary)
    history.planned = log.planned or _planned(log.records)
    reached = [int(record["step"]) for record in said if math.isfinite(record["step"])] if numbered else []
    history.reached = max([*reached, *([log.reached] if log.reached else [])], default=None)
    history.coarse = _interval(steps) if numbered else 1
    _ending(history, log)
    return history


def totals(summary: Record) -> dict[str, float]:
    """The numbers of the Trainer's last line."""
    kept = {key: value for key, value in summary.items() if key.startswith("train_") or key == "total_flos"}
    return {key: value for key, value in kept.items() if isinstance(value, float) and not abs(value) > LARGEST}


def _ending(history: History, log: Log) -> None:
    """Whether it ended: as the source says, by the Trainer's last line, or at the planned step."""
    done = history.planned is not None and history.numbered and history.last_step >= history.planned
    short = history.planned is not None and history.numbered and history.last_step < history.planned
    history.finished = done or bool(history.summary) if log.finished is None else log.finished
    history.stopped_early = history.finished and short and (log.stopped_early or bool(history.summary))


def _why_none(records: Sequence[Record]) -> str:
    if any(evaluation(record) for record in records):
        return "source.only_evaluations"
    return "source.only_summary" if any(is_summary(record) for record in records) else "source.no_loss"


def _pace(log: Log) -> tuple[float | None, float | None]:
    """Steps and epochs of the whole run, or of what was run so far."""
    if log.planned and log.epochs:
        return log.planned, log.epochs
    epochs = [record["epoch"] for record in log.records if isinstance(record.get("epoch"), float)]
    if log.reached and epochs and max(epochs) > 0 and any(is_summary(record) for record in log.records):
        return log.reached, max(epochs)
    return None, None


def _planned(records: Sequence[Record]) -> int | None:
    for record in reversed(records):
        for key in PLANNED_KEYS:
            value = record.get(key)
            if isinstance(value, float) and 0 < value < MOST_STEPS:
                return int(value)
    return None


def _frames(records: Sequence[Record], partial: bool) -> tuple[pd.DataFrame, pd.DataFrame, tuple[int, ...]]:
    """Steps, evaluations, and the steps of evaluations whose loss is not finite."""
    steps: dict[float, Record] = {}
    evals: dict[float, Record] = {}
    ended = False
    for record in records:
        ended = ended or is_summary(record)
        step = record.get("step")
        if not isinstance(step, float) or not math.isfinite(step):
            continue
        if is_step(record) or (partial and not is_summary(record)):
            row = {key: value for key, value in record.items() if not key.startswith("eval_")}
            _put(steps, step, row, together=partial)
        # after its last line a Trainer may evaluate once more, with the best weights
        if (measured := evaluation(record)) and not (ended and step in evals):
            measured |= {key: record[key] for key in ("epoch", "step") if key in record}
            put_evaluation(evals, step, measured, together=partial)
    if partial:
        steps = {step: row for step, row in steps.items() if is_step(row)}
    lost = tuple(sorted(int(s) for s, row in evals.items() if not math.isfinite(row.get("eval_loss", 0.0))))
    return frame_of(steps.values(), COLUMNS), frame_of(evals.values(), ("step", "eval_loss")), lost


# Keys that two evaluations of one step on different rows may both have.
SHARED = {"epoch", "start", "step"}


def put_evaluation(evals: dict[float, Record], step: float, measured: Record, together: bool = False) -> None:
    """The last evaluation of a step; several on different rows, as of a dict of data sets, stay together."""
    _put(evals, step, measured, together or not set(evals.get(step, ())) & set(measured) - SHARED)


def _put(rows: dict[float, Record], step: float, row: Record, together: bool) -> None:
    """The last word on a step, or all words together."""
    rows[step] = {**rows.get(step, {}), **row} if together else row


def frame_of(rows: Iterable[Record], columns: Sequence[str]) -> pd.DataFrame:
    """float64, `columns` first, then every other number, in order of steps; what is no number is NaN.

    A number beyond what float32 can hold is infinite, and one below what it can tell from 0 is 0: no training computes
    such numbers, and ratios of what is left stay finite.
    """
    import pandas as pd

    kept = [
        {k: v for k, v in row.items() if k not in NOT_MEASURED and (k in columns or type(v) in (float, int))}
        for row in rows
    ]
    others = dict.fromkeys(key for row in kept for key in row if key not in columns)
    frame = pd.DataFrame(kept).reindex(columns=[*columns, *others])
    numbers = _within_float32(frame.apply(pd.to_numeric, errors="coerce").astype("float64"))
    numbers = numbers.dropna(subset=["step"]).drop_duplicates("step", keep="last")
    numbers = numbers.sort_values("step", kind="stable", ignore_index=True)
    numbers.attrs[PRINTED] = tuple(dict.fromkeys(key for row in kept for key in row))
    return numbers


def _within_float32(numbers: pd.DataFrame) -> pd.DataFrame:
    values = numbers.to_numpy(copy=True)
    beyond = abs(values) > LARGEST
    values[beyond] = np.copysign(np.inf, values[beyond])
    values[abs(values) < SMALLEST] = 0.0
    return numbers.__class__(values, numbers.index, numbers.columns)


def _interval(steps: pd.DataFrame) -> int:
    gaps = steps["step"].diff().dropna()
    return max(1, int(gaps.median())) if len(gaps) else 1


def _progress(bars: Sequence[Bar], records: Sequence[Record]) -> pd.DataFrame:
    """Time spent and time left, one row a step: of the bars, else of records that say so."""
    import pandas as pd

    rows: list[tuple[float, ...]] = [
        (float(bar.n), bar.spent, math.nan if bar.left is None else bar.left) for bar in bars
    ]
    for record in records:
        spent = record.get("elapsed_time")
        if isinstance(spent, str) and isinstance(record.get("step"), float):
            left = record.get("remaining_time")
            times = [seconds(spent), seconds(left) if isinstance(left, str) else None]
            rows.append((record["step"], *(math.nan if time is None else time for time in times)))
    frame = pd.DataFrame(rows, columns=list(PROGRESS), dtype="float64")
    return frame.drop_duplicates("step").sort_values("step", ignore_index=True)
