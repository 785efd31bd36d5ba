"""Experiment trackers through accelerate: the numbers of the log, under the names of metrics.jsonl."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ...instrument.messages import say
from ..config.names import trackers_wanted
from ..config.schema import Config
from ..errors import first_line

PROJECT = "lora-train"
# What names the project instead: a tracker does not look there once it is given a name.
PROJECT_VARIABLE = {
    "clearml": "CLEARML_PROJECT",
    "comet_ml": "COMET_PROJECT_NAME",
    "swanlab": "SWANLAB_PROJECT",
    "trackio": "TRACKIO_PROJECT",
    "wandb": "WANDB_PROJECT",
}


class Trackers:
    """The trackers of training.report_to. One that fails is told once and left out from then on."""

    def __init__(self, config: Config, run_dir: Path, warn: Callable[[str], None]):
        self._warn = warn
        self._trackers: dict[str, Any] = {}
        run_name = config.training.run_name or run_dir.name
        for name in trackers_wanted(config.training.report_to):
            self._guarded(name, lambda name=name: self._start(name, run_name, run_dir, config))

    def _start(self, name: str, run_name: str, run_dir: Path, config: Config) -> None:
        kind = LOGGER_TYPE_TO_CLASS["mlflow" if name == "azure_ml" else name]
        first, others = _names(name, run_name, run_dir)
        tracker = kind(first, **others)
        with _unasked():
            tracker.start()
        self._trackers[name] = tracker
        if name == "comet_ml":
            tracker.tracker.set_name(run_name)
        tracker.store_init_configuration(flat(config))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Sends what is a finite number to every tracker; the step is the axis and no value (trackio refuses it)."""
        numbers = {
            key: +value  # a bool becomes a number that can be drawn
            for key, value in values.items()
            if key != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(numbers, step=step))

    def finish(self) -> None:
        """Closes them."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.finish)
        self._trackers.clear()

    def _guarded(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # a tracker's network or disk is no reason to lose a run
            self._trackers.pop(name, None)
            self._warn(say("tracker.failed", name=name, what=first_line(error, typed=True)))


def _names(name: str, run_name: str, run_dir: Path) -> tuple[str, dict[str, str]]:
    """Where accelerate's tracker wants the project and the name of the run: its first argument, and the others."""
    project = os.environ.get(PROJECT_VARIABLE.get(name, ""), PROJECT)
    match name:
        case "tensorboard" | "aim":
            return run_name, {"logging_dir": str(run_dir / "trackers")}
        case "wandb" | "trackio":
            return project, {"name": run_name}
        case "swanlab":
            return project, {"experiment_name": run_name}
        case "mlflow" | "azure_ml":  # the experiment: MLFLOW_EXPERIMENT_NAME comes before it
            return project, {"run_name": run_name}
        case "clearml":
            return run_name, {"project_name": project}
        case _:  # comet_ml, which names a run later; dvclive, which names none
            return project, {}


@contextmanager
def _unasked() -> Iterator[None]:
    """Takes the terminal away: a tracker without a key fails instead of waiting for someone to type one."""
    terminal = sys.stdin
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = terminal


def flat(config: Config) -> dict[str, Any]:
    """The configuration as {"section.key": plain value}."""
    return {
        f"{section}.{key}": value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
        for section, values in config.model_dump().items()
        for key, value in values.items()
    }
