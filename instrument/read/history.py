"""What a run recorded, whichever program recorded it, as frames that the rules read. Imports no torch.

`logs.read_history` makes one of a run folder, a trainer_state.json, a console, a table, an export. What a source does
not record is NaN or missing, never invented.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..messages import say
from .damaged import damage
from .load import Run
from .schema import STEP_COLUMNS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# Columns that every history has, NaN where the source does not know.
COLUMNS = ("start", *STEP_COLUMNS)
PRINTED = "printed"
"""In the attributes of `steps`: the columns that the source has, if only with values that are not finite."""
TASKS = ("causal_lm", "seq_cls", "token_cls", "regression", "preference", "reward", "grpo", "ppo", "other")
TRAINED = r":[^:]*\.grad$"
"""The sites of the gradients of parameters."""
# Norms of single layers are read at no more steps than this: a judgement of spread needs no more.
MAX_LAYER_STEPS = 400


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
        kind: "run" (a run folder), "trainer" (trainer_state.json) or "log" (everything else).
        steps: COLUMNS, then every other number that was logged (`reward`, `mean_token_accuracy`), one row a step; of a
            stock run one row a logged step, with the mean loss since the last.
        evals: `step`, `eval_loss` and every other number an evaluation measured; NaN where it did not.
        config: {section: {key: value}} of a run folder, of a stock run what its state says, in the same places.
        env, incidents: env.json and every diagnosis.json, in order of steps.
        coarse: steps between two rows; 1 where every step is there, or where the log does not say.
        finished: whether the run came to its end, planned or early.
        stopped_early: whether it ended by itself before the planned steps: EarlyStoppingCallback, or another callback.
        task: what is trained, one of TASKS: words, units and rules differ; "other" where the trainer has a loss of
            its own, in a unit that nobody knows.
        task_known: whether the source says so; else the commonest is taken.
        trainer: whose log it is, one of TRAINERS (judge/wording.py): advice names its keys.
        planned: steps the run was to make, where that is known.
        numbered: whether `step` counts optimizer steps; else it counts the lines of a log that does not say.
        reached: the last step that was run, where the source says so; see `last_step`.
        nan_evals: steps whose evaluation gave a loss that is not finite.
        best: step and value of the best evaluation by metric_for_best_model, as the Trainer says.
        progress: `step`, `elapsed_seconds`, `eta_seconds` of progress bars and LLaMA-Factory's log.
        summary: the numbers of the Trainer's last line: train_runtime, train_loss, train_samples_per_second.
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
    reached: int | None = None
    stopped_early: bool = False
    task_known: bool = False
    nan_evals: tuple[int, ...] = ()
    best: tuple[int, float] | None = None
    progress: pd.DataFrame = field(default_factory=lambda: _no_progress())
    summary: dict[str, float] = field(default_factory=dict)
    run: Run | None = None
    damaged: bool = False

    @property
    def stock(self) -> bool:
        """Whether the stock Trainer printed it, whose log replaces losses that are not finite."""
        return self.kind != "run" or bool(self.config.get("stock"))

    @property
    def last_step(self) -> int:
        """The last step that was run, which may lie past the last logged one; 0 without any."""
        logged = int(self.steps["step"].iloc[-1]) if len(self.steps) else 0
        return max(logged, self.reached or 0) if self.numbered else logged

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

    def spent(self) -> tuple[float, float, float]:
        """Seconds of steps, evaluations and checkpoints. A step's line does not yet know of the evaluation after it."""
        import numpy as np

        seconds, evals = self.column("step_seconds"), self.evals
        told = float(evals["eval_runtime"].astype("float64").sum()) if "eval_runtime" in evals else 0.0
        besides = [self.column(name) for name in ("eval_seconds_total", "save_seconds_total")]
        evaluating, saving = (float(np.nanmax(column)) if np.isfinite(column).any() else 0.0 for column in besides)
        return float(np.nansum(seconds)), max(told, evaluating), saving

    def column(self, name: str) -> np.ndarray:
        """A column of the steps as float64."""
        return self.steps[name].to_numpy("float64")

    def finite(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a column where it is finite."""
        import numpy as np

        step, values = self.column("step"), self.column(name)
        kept = np.isfinite(values)
        return step[kept], values[kept]

    @property
    def trains_weights(self) -> bool:
        """Whether the model's own weights were trained, where that is known: there is no adapter."""
        return self.env.get("trains") == ["weights"]

    def stats(self, sites: str, columns: list[str], steps: Iterable[int] | int) -> pd.DataFrame | None:
        """Run.stats; None where nothing was recorded, or where it is damaged, which `damaged` then says."""
        if self.run is None:
            return None
        try:
            frame = self.run.stats(sites, columns, steps)
        except damage():  # cut off, or of another version
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
        """Gradient norms: steps x modules, all that is trained of one together; None where they are not recorded."""
        steps = [int(step) for step in self.steps["step"]]
        kept = steps[:: max(1, math.ceil(len(steps) / MAX_LAYER_STEPS))]
        frame = self.stats(TRAINED, ["norm"], kept)
        if frame is None:
            return None
        frame["module"] = frame["site"].astype(str).str.rpartition(":")[0]
        frame["square"] = frame["norm"] ** 2
        squares: Any = frame.groupby(["step", "module"], sort=False)["square"].sum(min_count=1)
        return squares.unstack() ** 0.5


PROGRESS = ("step", "elapsed_seconds", "eta_seconds")


def _no_progress() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({name: [] for name in PROGRESS}, dtype="float64")
