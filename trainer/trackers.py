"""Experiment trackers through accelerate: the numbers of the log, under the names of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ..instrument.messages import say
from .config import Config
from .read_config import trackers_wanted


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
        folder = {"logging_dir": str(run_dir / "trackers")} if kind.requires_logging_directory else {}
        if kind is LOGGER_TYPE_TO_CLASS["mlflow"]:
            tracker = kind(experiment_name=None, run_name=run_name, **folder)
        else:
            tracker = kind(run_name, **folder)
        self._trackers[name] = tracker
        tracker.start()
        tracker.store_init_configuration(flat(config))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Sends what is a finite number to every tracker."""
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float)) and value == value}
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
            self._warn(say("tracker.failed", name=name, what=f"{type(error).__name__}: {error}".split("\n")[0]))


def flat(config: Config) -> dict[str, Any]:
    """The configuration as {"section.key": plain value}."""
    return {
        f"{section}.{key}": value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
        for section, values in config.model_dump().items()
        for key, value in values.items()
    }
