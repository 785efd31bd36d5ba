"""Optuna's TPE over a study's folder: its journal lies there, and is told what the outcomes beside it say.

ask    when a trial is taken: the settings are written to its claim, and a later attempt takes them from there
tell   before each ask, of every trial that has ended, by whoever asks: a worker that dies in between loses nothing
"""

from __future__ import annotations

from typing import Any

from .folder import Attempt, attempts
from .space import Choices, Range
from .study_file import StudyFile

JOURNAL = "optuna.journal"
TRIAL = "trial"


def draw(study: StudyFile, attempt: Attempt, lower: bool) -> dict[str, Any]:
    """The settings of a new trial.

    Args:
        lower: whether less of the metric is better.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(study.folder / JOURNAL)))
    sampler = optuna.samplers.TPESampler(seed=study.seed + attempt.trial, constant_liar=True)
    own = optuna.create_study(
        storage=storage,
        study_name=study.name,
        sampler=sampler,
        load_if_exists=True,
        direction="minimize" if lower else "maximize",
    )
    tell(study, own)
    asked = own.ask({key: _distribution(one) for key, one in study.space.items()})
    asked.set_user_attr(TRIAL, attempt.trial)
    return {key: _value(one, asked.params[key]) for key, one in study.space.items()}


def tell(study: StudyFile, own: Any) -> None:
    """Tells Optuna of the trials that have ended since."""
    from optuna.trial import TrialState

    found = attempts(study.folder)
    for trial in own.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        attempt = found.get(trial.user_attrs.get(TRIAL, -1))
        outcome = attempt.outcome() if attempt is not None else None
        if outcome is None:
            continue
        if outcome["value"] is None or outcome["ended"] not in ("done", "early"):
            own.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        else:
            own.tell(trial.number, outcome["value"], skip_if_finished=True)


def _distribution(one: Range | Choices) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(one, Choices):  # by number: Optuna takes no lists
        return CategoricalDistribution(range(len(one.values)))
    log = one.scale == "log"
    return IntDistribution(int(one.low), int(one.high), log) if one.whole else FloatDistribution(one.low, one.high, log)


def _value(one: Range | Choices, drawn: Any) -> Any:
    if isinstance(one, Choices):
        return one.values[drawn]
    return int(drawn) if one.whole else float(f"{drawn:.3g}")
