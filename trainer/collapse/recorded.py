"""What a run has recorded of a step, read as files of unknown origin: capsules, metrics.jsonl, stats/.

A run folder is what people send for a bug report. What is torn or foreign in it is said with its file's name, and
nothing in it can let code run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...instrument.messages import say
from ...instrument.read.load import load_run
from ...instrument.read.store import METRICS, SCHEMA_VERSION, STATS, read_metrics, stats_files
from ...instrument.record.capsule import INCIDENTS
from ..config.schema import Config
from ..data.batches import Plan
from ..data.examples import Example
from ..errors import UserError, first_line, problem
from ..saved.state import LARGEST, Count, Torn, first_of, read_json, require_version

FACTS, TENSORS = "capsule.json", "capsule.safetensors"
Row = int | Annotated[str, Field(pattern=r"^\d{1,9}/\d{1,9}$")]
Steps = Mapping[int, list[list[list[Example]]]]
"""Step -> micro-batches -> processes -> rows."""


class Facts(BaseModel):
    """capsule.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Count = SCHEMA_VERSION
    step: Count
    start: Count
    state_step: Count
    rows: dict[Annotated[int, Field(ge=1, strict=False)], list[list[list[Row]]]]
    n_steps: Count
    steps_per_epoch: float
    metrics: list[float] = []
    processes: Annotated[int, Field(ge=1, lt=LARGEST)]
    config: Config


@dataclass(frozen=True)
class Capsule:
    """A whole capsule: facts, state and rows of the steps from there to its step."""

    facts: Facts
    tensors: Mapping[str, torch.Tensor]
    steps: Steps


def capsules(run: Path, step: int) -> list[Path]:
    """The folders of a step's incidents, newest first."""
    named = re.compile(rf"step-{step}(\.start-\d+(\.\d+)?)?")
    found = [path for path in (run / INCIDENTS).glob(f"step-{step}*") if named.fullmatch(path.name)]
    return sorted((path for path in found if (path / FACTS).exists()), key=lambda path: -path.stat().st_mtime)


def read_capsule(folder: Path, step: int) -> Capsule:
    """The capsule of a step.

    Raises:
        Torn: it is not whole, of a newer version or of another step.
    """
    values, text = read_json(folder / FACTS)
    require_version(FACTS, values)
    try:
        facts = Facts.model_validate_json(text)
    except ValidationError as error:
        raise Torn(first_of(error, FACTS)) from None
    if facts.step != step or sorted(facts.rows) != list(range(facts.state_step + 1, step + 1)) or step > facts.n_steps:
        raise Torn(say("saved.bad_key", file=FACTS, key="step", what=facts.step))
    try:
        tensors = load_file(folder / TENSORS)
        return Capsule(facts, tensors, recorded_rows(tensors, facts.rows, facts.config))
    except KeyError as error:
        raise Torn(say("saved.missing", file=f"{TENSORS}: {error.args[0]}")) from None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise Torn(say("saved.unreadable", file=TENSORS, what=first_line(error))) from None


def recorded_rows(
    tensors: Mapping[str, torch.Tensor],
    rows: Mapping[int, list[list[list[int | str]]]],
    config: Config | None = None,
) -> Steps:
    """The micro-batches of the steps in a capsule, each as what every process had of it.

    Args:
        config: of the run; a classifier's rows have labels.

    Raises:
        KeyError: a row is not among the tensors.
        ValueError: it is not ids and a mask of the same length.
    """

    def example(row: int | str) -> Example:
        number = int(str(row).partition("/")[0])  # "7/1": the second of the answers that a row is trained on apart
        ids, mask = tensors[f"row.{row}.input_ids"], tensors[f"row.{row}.supervised"]
        if ids.ndim != 1 or ids.shape != mask.shape or not len(ids) or ids.is_floating_point() or int(ids.min()) < 0:
            raise ValueError(f"row.{row}")
        found = Example(number, ids.numpy(), mask.bool().numpy())
        return (
            replace(found, **_labels(tensors, row, config, len(ids)))
            if config is not None and config.is_classifier
            else found
        )

    return {
        int(step): [[[example(row) for row in own] for own in micro] for micro in micros]
        for step, micros in rows.items()
    }


def _labels(tensors: Mapping[str, torch.Tensor], row: int | str, config: Config, length: int) -> dict[str, Any]:
    """What a classifier's row has besides tokens and mask.

    Raises:
        KeyError: it has no labels.
        ValueError: they are not those of such a row.
    """
    labels, tagged = tensors[f"row.{row}.labels"], config.model.task == "token_cls"
    types, weight = (tensors.get(f"row.{row}.{key}") for key in ("token_types", "weight"))
    n_outputs, one_class = len(config.data.labels or "1"), not labels.is_floating_point()
    shape = length if tagged else 1 if one_class else n_outputs
    fits = labels.shape == (shape,) and (not one_class or -100 <= int(labels.min()) <= int(labels.max()) < n_outputs)
    if not fits or (types is not None and types.shape != (length,)):
        raise ValueError(f"row.{row}")
    return {
        "labels": labels.numpy(),
        "token_types": None if types is None else types.numpy(),
        "weight": None if weight is None else float(weight),
        "is_tagged": tagged,
    }


@dataclass(frozen=True)
class RecordedPlan(Plan):
    """The rows of a few steps, as a capsule keeps them: the data itself may be gone."""

    recorded: Steps = field(default_factory=dict)

    def shares(self, step: int) -> list[list[list[Example]]]:
        """The micro-batches of a step, without the rows that are left out now."""
        return [[self.kept(own) for own in micro] for micro in self.recorded[step]]


def step_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are steps, in order.

    Raises:
        UserError: it cannot be read.
    """
    try:
        rows = read_metrics(run)
    except OSError as error:
        raise UserError(problem("replay.damaged", file=run / METRICS, what=error.strerror)) from None
    return [
        row
        for row in rows
        if "learning_rate" in row and isinstance(row.get("step"), int) and isinstance(row.get("start"), int)
    ]


def statistics(run: Path, **wanted: Any) -> pd.DataFrame:
    """`load_run(run).stats(**wanted)`.

    Raises:
        UserError: a file of stats/ is damaged; names it.
    """
    try:
        return load_run(run).stats(**wanted)
    except Exception as error:  # of damaged bytes pyarrow, pandas and json raise whatever comes first
        raise UserError(problem("replay.damaged", file=_damaged(run), what=first_line(error))) from error


def _damaged(run: Path) -> Path:
    """The first compacted file that cannot be read, else their folder."""
    for path in stats_files(run):
        try:
            if path.suffix == ".parquet":
                pq.ParquetFile(path).read(use_threads=False)
        except Exception:  # see statistics
            return path
    return run / STATS
