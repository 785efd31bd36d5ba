"""Optuna is asked for settings and told of outcomes, through the folder alone."""

from __future__ import annotations

import importlib.util

import pytest
from lora_train.trainer.errors import UserError
from lora_train.trainer.sweep import study_file
from lora_train.trainer.sweep.folder import Attempt
from lora_train.trainer.sweep.rounds import Planned, Planner
from lora_train.trainer.sweep.study_file import RATE, read_study_file

from .build import begun, written

SPACE = {RATE: {"low": 1e-5, "high": 1e-3, "scale": "log"}, "lora.target_modules": ["all-linear", ["q_proj"]],
         "lora.r": {"low": 4, "high": 16}}  # fmt: skip
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="Optuna is not installed: pip install 'lora-vitals[tune]'"
)


def test_without_optuna_the_line_to_install_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(study_file, "is_installed", lambda name: name != "optuna")
    with pytest.raises(UserError, match=r"pip install 'lora-vitals\[tune\]'"):
        read_study_file(written(tmp_path, sampler="tpe", trials=3, nuisance=SPACE))


@needs_optuna
def test_repeats_of_a_point_that_is_drawn_are_refused(tmp_path):
    with pytest.raises(UserError, match="seeds=2"):
        read_study_file(written(tmp_path, sampler="tpe", trials=3, nuisance=SPACE, seeds=2))


@needs_optuna
def test_what_has_ended_is_told_before_the_next_is_asked(tmp_path):
    import optuna
    from lora_train.trainer.sweep.tune import JOURNAL, draw
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    study, first = begun(tmp_path, sampler="tpe", trials=4, nuisance=SPACE)
    assert Planner(study, first).known({}) == [Planned(None, 40)] * 4
    drawn = []
    for trial, outcome in enumerate(({"ended": "done", "value": 1.5}, {"ended": "collapse", "value": None}, None)):
        attempt = Attempt(study.folder, trial)
        attempt.take()
        drawn.append(draw(study, attempt, lower=True))
        if outcome is not None:
            attempt.end(outcome)
    for settings in drawn:
        assert set(settings) == set(SPACE)
        assert 1e-5 <= settings[RATE] <= 1e-3
        assert settings["lora.target_modules"] in ("all-linear", ["q_proj"])
        assert isinstance(settings["lora.r"], int)
    storage = JournalStorage(JournalFileBackend(str(study.folder / JOURNAL)))
    told = optuna.load_study(study_name=study.name, storage=storage).get_trials()
    assert [(one.state, one.value) for one in told] == [
        (TrialState.COMPLETE, 1.5), (TrialState.FAIL, None), (TrialState.RUNNING, None),
    ]  # fmt: skip
