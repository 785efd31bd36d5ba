"""What a configuration may let run that is not ours: Python code of the model, a function of a user's module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...instrument.read.store import METRICS
from ..config.schema import Config
from ..config.settings import with_settings
from ..errors import UserError, problem


def own_word(config: Config, path: str | Path, overrides: Sequence[str]) -> Config:
    """The configuration, unless it lies in a run folder and would let code run that comes with the model.

    Run folders are passed on: there the user's command line alone may say so.

    Raises:
        UserError: it would.
    """
    own, in_run = config.training.compute_metrics, (Path(path).parent / METRICS).exists()
    if own and in_run and not any(override.startswith("training.compute_metrics=") for override in overrides):
        raise UserError(problem("config.own_code", file=path, name=own))
    if not config.model.trust_remote_code or not in_run:
        return config
    if any(override.startswith("model.trust_remote_code=") for override in overrides):
        return config
    raise UserError(problem("config.remote_code", file=path))


def without_code(config: Config, trust_remote_code: bool = False) -> Config:
    """The configuration of a run folder, for who reads it: nothing in it lets code run.

    Args:
        config: as the folder has it.
        trust_remote_code: the user's word on code that comes with the model.
    """
    return with_settings(config, {"model.trust_remote_code": trust_remote_code, "training.compute_metrics": None})
