"""A study as it is written: its trials, the configuration of one, and that a folder holds one study."""

from __future__ import annotations

import pytest
from lora_train.trainer.checks.read_config import check
from lora_train.trainer.errors import UserError
from lora_train.trainer.sweep.plan import configuration, drawn, of_folder, write_study
from lora_train.trainer.sweep.study_file import RATE, read_study_file

from .build import BASE, RATES, begun, written


def test_trials_are_combinations_with_each_seed(tmp_path):
    study = read_study_file(written(tmp_path, seeds=2))
    seeds = [{"training.seed": 42 + i} for i in range(2)]
    assert drawn(study) == [{RATE: rate} | seed for seed in seeds for rate in RATES]
    own = {**BASE, "training": {"seed": 7}}
    assert drawn(read_study_file(written(tmp_path, seeds=2, base=own)))[-1] == {RATE: 0.4, "training.seed": 8}


def test_the_configuration_of_a_trial(tmp_path):
    study = read_study_file(written(tmp_path, fixed={"lora.r": 16}))
    config = check(configuration(study, {RATE: 0.3}, 200), str)
    training = config.training
    assert (training.learning_rate, training.max_steps, config.lora.r) == (0.3, 200, 16)
    assert (training.eval_strategy, training.eval_steps, training.save_steps) == ("steps", 20, 50)
    assert (training.push_to_hub, training.resume_from_checkpoint) == (False, None)
    own = {**BASE, "training": {"eval_steps": 7, "save_steps": 9, "eval_strategy": "epoch", "push_to_hub": True}}
    kept = check(configuration(read_study_file(written(tmp_path, base=own)), {}, 200), str).training
    assert (kept.eval_strategy, kept.eval_steps, kept.save_steps) == ("epoch", 7, 9)
    assert BASE["training"] == {"learning_rate": 1.0e-3}  # nobody's sections are changed


def test_a_folder_says_what_was_asked(tmp_path):
    space = {"lora.r": {"low": 4, "high": 16, "points": 3}, RATE: {"low": 0.1, "high": 1, "scale": "log", "points": 2}}
    asked = read_study_file(written(tmp_path, nuisance=space, rounds=[{"best": 1, "steps": 50}]))
    found = write_study(asked)
    study, values = of_folder(asked.folder)
    assert study == asked
    assert values["plan"] == found["plan"] == drawn(asked)
    assert write_study(asked) == found  # who comes second finds it there


def test_threads_are_those_of_the_machine_that_begins(tmp_path):
    asked = read_study_file(written(tmp_path, threads=None))
    assert (asked.threads, of_folder_threads(asked) >= 1) == (None, True)


def of_folder_threads(asked) -> int:
    write_study(asked)
    return of_folder(asked.folder)[0].threads or 0


def test_another_study_is_not_written_over(tmp_path):
    begun(tmp_path)
    before = (tmp_path / "study" / "study.yaml").read_bytes()
    with pytest.raises(UserError, match="holds another study: steps differ"):
        write_study(read_study_file(written(tmp_path, steps=41)))
    assert (tmp_path / "study" / "study.yaml").read_bytes() == before


@pytest.mark.parametrize("text", [None, "{", "- a\n", "plan: []\n", "plan: []\nspace: {a: {low: x}}\nrounds: []\n"])
def test_a_folder_without_a_study_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match="holds no study"):
        of_folder(tmp_path)
