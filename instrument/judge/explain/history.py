"""What a run recorded, whichever program recorded it, as frames that the rules read. Imports no torch.

    read_history("runs/koalpaca")                  a run folder of lora-train or of InstrumentCallback
    read_history("outputs/trainer_state.json")     transformers' Trainer; also a checkpoint's folder that holds it
    read_history("training.log")                   pasted lines of {'loss': ..., 'grad_norm': ...}

What a source does not record is NaN or missing, never invented.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...messages import say
from ...read.load import Run
from ...read.schema import STEP_COLUMNS, kind_of
from ...read.store import METRICS, SCHEMA_VERSION, SITES, read_metrics

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

STATE = "trainer_state.json"
# Columns that every history has, NaN where the source does not know.
COLUMNS = ("start", *STEP_COLUMNS)
TASKS = ("causal_lm", "seq_cls", "token_cls", "regression", "preference", "reward", "grpo")

# Norms of single layers are read at no more steps than this: a judgement of spread needs no more.
MAX_LAYER_STEPS = 400
_RECORD = re.compile(r"\{[^{}]*\}")
_NONFINITE = re.compile(r"(?<![\w'\".])(nan|-?inf|NaN|-?Infinity)(?![\w'\".])")


class SourceError(ValueError):
    """What was to be read is no run; the sentence and its hint are in the catalogue under `key`."""

    def __init__(self, key: str, **values: Any):
        super().__init__(say(key, **values))
        self.key, self.values = key, values


@dataclass
class History:
    """A run as the rules see it.

    Attributes:
        name: what the user asked about.
        kind: "run" (a run folder), "trainer" (trainer_state.json) or "log" (pasted lines).
        steps: COLUMNS and one row a step; of a stock run one row a logged step, with the mean loss since the last.
        evals: `step`, `eval_loss` and what else an evaluation measured.
        config: {section: {key: value}} of a run folder, of a stock run what its state says, in the same places.
        env, incidents: env.json and every diagnosis.json, in order of steps.
        coarse: steps between two rows; 1 where every step is there.
        finished: whether the run came to its end.
        task: what is trained, one of TASKS: words, units and rules differ.
        trainer: whose log it is, one of TRAINERS (judge/wording.py): advice names its keys.
        planned: steps the run was to make, where that is known.
        numbered: whether `step` counts optimizer steps; else it counts the lines of a log that does not say.
        run: the folder's reader, where there is one.
        damaged: whether statistics were found that cannot be read.
    """

    name: str
    kind: str
    steps: pd.DataFrame
    evals: pd.DataFrame
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    coarse: int = 1
    finished: bool = False
    task: str = "causal_lm"
    trainer: str = "lora-train"
    planned: int | None = None
    numbered: bool = True
    run: Run | None = None
    damaged: bool = False

    @property
    def stock(self) -> bool:
        """Whether the stock Trainer printed it, whose log replaces losses that are not finite."""
        return self.kind != "run" or bool(self.config.get("stock"))

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of `section.key`."""
        section, _, name = key.partition(".")
        value = self.config.get(section, {}).get(name)
        return default if value is None else value

    def number(self, key: str) -> float | None:
        """The value of `section.key` where it is a number."""
        value = self.setting(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    @property
    def rows_per_step(self) -> str:
        """Rows of a step on one process, as text."""
        size = self.number("training.per_device_train_batch_size")
        parts = self.number("training.gradient_accumulation_steps")
        return "?" if size is None else f"{size * (1 if parts is None else parts):g}"

    @property
    def epochs(self) -> float | None:
        """How often the data were seen, where that is known."""
        last = float(self.column("epoch")[-1])
        return last if math.isfinite(last) else None

    @property
    def attached(self) -> bool:
        """Whether another program trained and only the recording is ours."""
        return bool(self.env.get("attached"))

    def column(self, name: str) -> np.ndarray:
        """A column of the steps as float64."""
        return self.steps[name].to_numpy("float64")

    def finite(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a column where it is finite."""
        import numpy as np

        step, values = self.column("step"), self.column(name)
        kept = np.isfinite(values)
        return step[kept], values[kept]

    def stats(self, sites: str, columns: list[str], steps: Iterable[int] | int) -> pd.DataFrame | None:
        """Run.stats; None where nothing was recorded, or where it is damaged, which `damaged` then says."""
        import pyarrow as pa

        if self.run is None:
            return None
        try:
            frame = self.run.stats(sites, columns, steps)
        except (pa.ArrowException, LookupError, OSError, TypeError, ValueError):  # cut off, or of another version
            self.damaged = True
            return None
        return None if frame.empty else frame

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Dtype by the name of a site; empty where sites.json is missing or damaged."""
        if self.run is None:
            return {}
        try:
            sites = self.run.sites
        except (OSError, LookupError, TypeError, ValueError):
            self.damaged = True
            return {}
        return dict(zip(sites["name"], sites["dtype"], strict=True))

    @cached_property
    def layers(self) -> pd.DataFrame | None:
        """Gradient norms: steps x modules, both LoRA matrices together; None where they are not recorded."""
        steps = [int(step) for step in self.steps["step"]]
        kept = steps[:: max(1, math.ceil(len(steps) / MAX_LAYER_STEPS))]
        frame = self.stats(r":lora_[AB]\.grad$", ["norm"], kept)
        if frame is None:
            return None
        frame["module"] = frame["site"].astype(str).str.rpartition(":")[0]
        frame["square"] = frame["norm"] ** 2
        squares: Any = frame.groupby(["step", "module"], sort=False)["square"].sum(min_count=1)
        return squares.unstack() ** 0.5


def read_history(path: str | Path) -> History:
    """Reads a run folder, a trainer_state.json or a pasted log.

    Raises:
        SourceError: it is none of these, or holds no step; says which.
    """
    path = Path(path)
    if path.name == METRICS:
        path = path.parent
    if path.is_dir():
        if any((path / name).is_file() for name in (METRICS, SITES)):
            return _from_run(path)
        if not (path / STATE).is_file():
            raise SourceError("source.no_run", path=path)
        path = path / STATE
    if not path.is_file():
        raise SourceError("source.missing", path=path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SourceError("source.unreadable", path=path, what=error.strerror) from error
    if path.suffix == ".json":
        return _from_state(path, text)
    return _from_log(path, text)


def _from_run(path: Path) -> History:

    run = Run(path)
    env = _read(path / "env.json", json.loads)
    env = env if isinstance(env, dict) else {}
    if (version := env.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise SourceError("source.other_schema", path=path, version=version, known=SCHEMA_VERSION)
    try:
        rows = read_metrics(path) if (path / METRICS).exists() else []
    except (OSError, ValueError) as error:
        raise SourceError("source.unreadable", path=path / METRICS, what=error) from error
    return History(
        name=str(path),
        kind="run",
        steps=_steps(row for row in rows if kind_of(row) == "step"),
        evals=_evals(row for row in rows if kind_of(row) == "evaluation"),
        config=_yaml(path / "config.yaml"),
        env=env,
        incidents=incidents_of(path),
        finished=any(kind_of(row) == "summary" for row in rows),
        run=run,
    )


def _from_state(path: Path, text: str) -> History:
    try:
        state = json.loads(text)
        log = state["log_history"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError("source.no_log_history", path=path) from error
    history = _stock(path, "trainer", [record for record in log if isinstance(record, dict)])
    history.finished = state.get("global_step") == state.get("max_steps")
    training = {
        "logging_steps": state.get("logging_steps"),
        "eval_steps": state.get("eval_steps"),
        "per_device_train_batch_size": state.get("train_batch_size"),
        "num_train_epochs": state.get("num_train_epochs"),
    }
    history.config = {"training": {key: value for key, value in training.items() if value is not None}}
    return history


def _from_log(path: Path, text: str) -> History:
    records = [record for match in _RECORD.finditer(text) if (record := _record(match.group()))]
    return _stock(path, "log", records)


def _record(text: str) -> dict[str, Any] | None:
    """{'loss': 1.2} as Python or JSON writes it, numbers as text too (transformers 5), nan and inf included."""
    try:
        values = json.loads(text)
    except ValueError:
        values = _python(text)
    if not isinstance(values, dict):
        return None
    return {str(key): _number(value) for key, value in values.items()}


def _python(text: str) -> Any:
    try:
        return ast.literal_eval(_NONFINITE.sub(r"'\1'", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _stock(path: Path, kind: str, records: list[dict[str, Any]]) -> History:
    """From the records of Trainer.log; one without a step gets its number."""

    rows, evals = [], []
    for record in records:
        record = {key: _number(value) for key, value in record.items()}
        if isinstance(record.get("loss"), float):
            rows.append({"step": len(rows) + 1, **record})
        elif isinstance(record.get("eval_loss"), float):
            evals.append({"step": rows[-1]["step"] if rows else 0, **record})
    if not rows:
        raise SourceError("source.no_loss", path=path)
    history = History(str(path), kind, _steps(rows), _evals(evals))
    gaps = history.steps["step"].diff().dropna()
    history.coarse = int(gaps.median()) if len(gaps) and kind == "trainer" else 1
    return history


def _steps(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(list(rows)).reindex(columns=list(COLUMNS))
    numbers = frame.apply(pd.to_numeric, errors="coerce").astype("float64")
    numbers = numbers.dropna(subset=["step"]).drop_duplicates("step", keep="last")  # a resumed log repeats some
    return numbers.sort_values("step", kind="stable", ignore_index=True)


def _evals(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Their numbers by step; what is no number is NaN."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    if "step" not in frame or "eval_loss" not in frame:
        return pd.DataFrame({"step": [], "eval_loss": []}, dtype="float64")
    numbers = frame.apply(pd.to_numeric, errors="coerce").astype("float64")
    return numbers.dropna(subset=["step"]).sort_values("step", kind="stable", ignore_index=True)


def incidents_of(path: Path) -> list[dict[str, Any]]:
    """Every diagnosis.json of a run folder with its folder's name, in order of steps; a torn one is left out."""
    found = []
    for file in sorted(path.glob("incidents/*/diagnosis.json")):
        diagnosis = _read(file, json.loads)
        if isinstance(diagnosis, dict) and isinstance(diagnosis.get("step"), int):
            found.append({**_incident(diagnosis), "folder": file.parent.name})
    return sorted(found, key=lambda diagnosis: diagnosis["step"])


def _incident(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """A diagnosis whose parts are of the kinds they should be, whatever wrote it."""
    evidence, remedies = diagnosis.get("evidence"), diagnosis.get("remedies")
    evidence = evidence if isinstance(evidence, dict) else {}
    return {
        **diagnosis,
        "kind": str(diagnosis.get("kind")),
        "action": str(diagnosis.get("action")),
        "rows": _whole(diagnosis.get("rows")),
        "evidence": {**evidence, "rows_alone": _whole(evidence.get("rows_alone"))},
        "remedies": [
            {**remedy, "change": str(remedy["change"])}
            for remedy in (remedies if isinstance(remedies, list) else [])
            if isinstance(remedy, dict) and "change" in remedy
        ],
    }


def _whole(values: Any) -> list[int]:
    return [value for value in values if isinstance(value, int)] if isinstance(values, list) else []


def _yaml(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    sections = _read(path, yaml.safe_load)
    if not isinstance(sections, dict):
        return {}
    return {str(name): values for name, values in sections.items() if isinstance(values, dict)}


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """None where the file is missing, torn or of another kind: the rest of a run is worth reading."""
    import yaml

    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
