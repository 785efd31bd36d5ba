"""Which folders make a study, and what of each run is known."""

from __future__ import annotations

import json
import shutil

import pytest
from lora_train.instrument.advise import advise, lines, read_study
from lora_train.instrument.advise.sources import settings_of, study_of
from lora_train.instrument.read.history import SourceError

from ...conftest import ROOT
from .build import run

RUNS = ROOT / "tests" / "runs"
LOGGED = [
    {"step": s, "loss": 2 - s / 100, "learning_rate": 1.98e-4 * (1 - s / 100), "epoch": s / 50}
    for s in range(10, 101, 10)
]
EVALUATED = [{"step": s, "eval_loss": 1.5, "epoch": s / 50} for s in (50, 100)]
STATE = {"global_step": 100, "max_steps": 100, "log_history": [*LOGGED, *EVALUATED]}


@pytest.fixture
def sweep(tmp_path):
    """A folder of two run folders, a file and a folder that is none."""
    folder = tmp_path / "sweep"
    for name in ("b", "a"):
        shutil.copytree(RUNS / "healthy", folder / name)
    (folder / "notes.txt").write_text("x")
    (folder / "logs").mkdir()
    return folder


def test_runs_are_given_by_name_or_by_the_folder_above(sweep):
    assert [trial.name for trial in read_study([sweep]).trials] == ["a", "b"]
    named = read_study([sweep / "b", sweep / "a"])
    assert [(trial.letter, trial.name) for trial in named.trials] == [("A", str(sweep / "b")), ("B", str(sweep / "a"))]
    assert [len(read_study([sweep, sweep]).trials), len(read_study([sweep / "a", sweep / "a"]).trials)] == [2, 1]


@pytest.mark.parametrize("name", ["study.yaml", "study.json"])
def test_a_study_folder_has_its_facts_and_its_trials(sweep, tmp_path, name):
    sweep.rename(tmp_path / "trials")
    text = '{"sampler": "sobol"}' if name.endswith("json") else "sampler: sobol\n"
    (tmp_path / name).write_text(text)
    study = read_study([tmp_path])
    assert ([trial.name for trial in study.trials], study.facts) == (["a", "b"], {"sampler": "sobol"})


def test_trials_that_ended_before_their_first_step_count(sweep, tmp_path):
    sweep.rename(tmp_path / "trials")
    (tmp_path / "trials" / "a").rename(tmp_path / "trials" / "000")
    (tmp_path / "trials" / "002").mkdir()
    ends = {"000": "crash", "001": "memory", "001.2": "refused", "002": "crash", "003": "early"}
    for name, ended in ends.items():
        (tmp_path / "claims" / name).mkdir(parents=True)
        (tmp_path / "claims" / name / "outcome.json").write_text(json.dumps({"ended": ended}))
    (tmp_path / "claims" / "004").mkdir()  # goes on
    study = read_study([tmp_path])
    assert study.unrecorded == ("001.2", "002")
    said = [advice for advice in advise(study) if advice.rule == "P15"]
    assert said[0].key == "advise.p15_unrecorded"
    assert "advise.p15_none" not in {advice.key for advice in said}
    assert said[0].sentence("en").startswith("Trials that ended before their first step: 2 (001.2, 002);")


@pytest.mark.parametrize("text", ["{", "- a\n- b\n", "sampler: [", "\x00"])
def test_a_torn_study_file_leaves_the_trials(sweep, text):
    (sweep / "study.yaml").write_text(text)
    study = read_study([sweep])
    assert (len(study.trials), study.facts) == (2, {})


def test_what_holds_no_run_is_refused(tmp_path):
    with pytest.raises(SourceError) as raised:
        read_study([tmp_path])
    assert raised.value.key == "advise.no_runs"
    with pytest.raises(SourceError):
        read_study([tmp_path / "nothing"])
    with pytest.raises(SourceError) as raised:
        study_of([])
    assert raised.value.key == "advise.nothing"


def test_a_stock_folder_is_read_with_what_lies_beside_it(tmp_path):
    for name, rate in (("x", "0.0002"), ("y", "0.0004")):
        folder = tmp_path / name
        (folder / "checkpoint-100").mkdir(parents=True)
        (folder / "checkpoint-100" / "trainer_state.json").write_text(json.dumps(STATE))
        (folder / "checkpoint-100" / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 32}')
        (folder / "checkpoint-100" / "training_args.bin").write_bytes(
            b"\x80\x04cos\nsystem\n"
        )  # a pickle that would run
        card = f"### Training hyperparameters\n\n- learning_rate: {rate}\n- train_batch_size: 4\n- seed: 7\n"
        (folder / "README.md").write_text(card)
    study = read_study([tmp_path])
    assert [trial.settings["training.learning_rate"] for trial in study.trials] == [2e-4, 4e-4]
    assert {trial.settings["lora.r"] for trial in study.trials} == {16}
    assert [trial.batch for trial in study.trials] == [4, 4]
    assert study.varied == ["training.learning_rate"]
    verdicts = {advice.rule: advice.verdict for advice in advise(study)}
    assert (verdicts["P3"], verdicts["P9"]) == ("answered", "answered")


def test_what_a_stock_folder_does_not_say_leaves_rules_unanswered(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        state = {key: value for key, value in STATE.items() if key == "log_history"}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
    study = read_study([tmp_path])
    assert {trial.settings["training.learning_rate"] for trial in study.trials} == {
        1.8e-4
    }  # the highest that was logged
    verdicts = {advice.rule: (advice.verdict, advice.key) for advice in advise(study)}
    assert verdicts["P3"] == ("not answered", "advise.p3_unknown")
    assert verdicts["P9"] == ("not answered", "advise.p9_unknown")
    assert verdicts["P14"] == ("not answered", "advise.p14_unknown")


def test_epochs_give_way_to_the_steps_they_make():
    history = run(settings={"training.max_steps": -1, "training.num_train_epochs": 3.0}, planned=100)
    settings = settings_of(history, "runs/x")
    assert settings["training.max_steps"] == 100
    assert "training.num_train_epochs" not in settings


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_every_folder_of_the_repository_is_advised_on(lang):
    study = read_study([RUNS])
    text = "\n".join(lines(study, advise(study), lang))
    assert {trial.name for trial in study.trials} == {"healed", "healthy", "lengths", "overfitting", "stock"}
    assert all(rule in text for rule in ("P1 ", "P4 ", "P15", "P20"))
