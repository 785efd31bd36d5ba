"""A study file is a study, or all its mistakes at once, each with its key and what to do."""

from __future__ import annotations

import pytest
import yaml
from lora_train.trainer.config.reference import keys, study_schema
from lora_train.trainer.errors import UserError
from lora_train.trainer.sweep.space import Choices, Range
from lora_train.trainer.sweep.study_file import KEYS, LOSS, RATE, SAMPLERS, Round, read_study_file

from ...conftest import ROOT
from .build import BASE, RATES, written

LOG = {"low": "1e-5", "high": 1.0e-3, "scale": "log", "points": 3}


def test_a_study_is_what_its_file_says(tmp_path):
    study = read_study_file(
        written(
            tmp_path,
            scientific={"lora.r": [4, 16], "lora.target_modules": ["all-linear", ["q_proj"]]},
            nuisance={RATE: LOG},
            fixed={"training.weight_decay": 0.1},
            seeds=2,
            metric="accuracy",
            early_stop="median",
            rounds=[{"best": 2, "steps": 80}],
        )
    )
    assert study.space == {
        "lora.r": Choices((4, 16)),
        "lora.target_modules": Choices(("all-linear", ["q_proj"])),
        RATE: Range(1e-5, 1e-3, "log", 3),
    }
    assert study.roles == {
        "scientific": ["lora.r", "lora.target_modules"], "nuisance": [RATE], "fixed": ["training.weight_decay"],
    }  # fmt: skip
    assert (study.trials, study.seeds, study.steps, study.metric) == (12, 2, 40, "eval_accuracy")
    assert (study.early_stop, study.rounds, study.threads) == ("median", (Round(2, 80),), 1)
    assert (study.name, study.folder, study.lost_after_seconds) == ("asked", tmp_path / "study", 60.0)


def test_the_base_may_be_a_file_beside_it(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    assert read_study_file(written(tmp_path, base="base.yaml")).base == BASE


WRONG = {
    "missing base": ({"base": None}, "base is missing"),
    "base of another kind": ({"base": 3}, "base=3 is neither the path"),
    "base that is not there": ({"base": "none.yaml"}, "none.yaml"),
    "no steps": ({"steps": None}, "steps is missing"),
    "steps of nothing": ({"steps": 0}, "steps=0 is not a whole number of 1 or more"),
    "steps in words": ({"steps": "many"}, "steps=many is not a whole number"),
    "yes for a number": ({"seeds": True}, "seeds=True is not a whole number"),
    "sampler": ({"sampler": "random"}, "sampler=random is none of grid, sobol, tpe"),
    "trials of sobol": ({"sampler": "sobol"}, "trials is missing"),
    "a grid's size": ({"trials": 3}, "trials=3, but the grid has 4 combinations"),
    "unknown key": ({"step": 3}, "step is not a key of a study (did you mean steps?)"),
    "nothing searched": ({"nuisance": None}, "nothing is searched"),
    "roles": ({"nuisance": [1]}, "nuisance=[1] does not name keys"),
    "length is searched": ({"nuisance": {"training.max_steps": [1, 2]}}, "training.max_steps: a study sets this key"),
    "seed is searched": ({"scientific": {"training.seed": [1, 2]}}, "use the study's own key, seeds"),
    "length is fixed": ({"fixed": {"training.num_train_epochs": 3}}, "use the study's own key, steps"),
    "twice": ({"scientific": {RATE: [1, 2]}}, "nuisance.training.learning_rate is under scientific already"),
    "fixed as well": ({"fixed": {RATE: 1}}, "fixed.training.learning_rate is under nuisance already"),
    "one choice": ({"nuisance": {RATE: [1]}}, "a choice needs two different values"),
    "equal choices": ({"nuisance": {RATE: [1, 1]}}, "a choice needs two different values"),
    "a value": ({"nuisance": {RATE: 1}}, "is neither a list of choices nor a range"),
    "a range without its end": ({"nuisance": {RATE: {"low": 1, "points": 2}}}, "learning_rate.high is missing"),
    "a range of words": ({"nuisance": {RATE: {**LOG, "low": "x"}}}, "learning_rate.low=x is not a number"),
    "a range to infinity": ({"nuisance": {RATE: {**LOG, "high": float("inf")}}}, "high=inf is not a number"),
    "a range upside down": ({"nuisance": {RATE: {**LOG, "low": 1}}}, "low=1 is not below high=0.001"),
    "a logarithm of 0": ({"nuisance": {RATE: {**LOG, "low": 0}}}, "cannot begin at low=0"),
    "a scale": ({"nuisance": {RATE: {**LOG, "scale": "cubic"}}}, "scale=cubic is none of linear, log"),
    "a grid of no points": ({"nuisance": {RATE: {"low": 1, "high": 2}}}, "how many points"),
    "one point": ({"nuisance": {RATE: {**LOG, "points": 1}}}, "points=1 is not a whole number of 2"),
    "a range's key": ({"nuisance": {RATE: {**LOG, "step": 1}}}, "learning_rate.step is nothing a range has"),
    "rounds": ({"rounds": [{"best": 2}]}, "rounds[0]={'best': 2} is no round"),
    "rounds of a kind": ({"rounds": 2}, "rounds=2 is no round"),
    "a shorter round": ({"rounds": [{"best": 2, "steps": 30}]}, "is no longer than the round before, which has 40"),
    "a metric": ({"metric": 3}, "metric=3 is not a name"),
    "a folder": ({"folder": [1]}, "folder=[1] is not a name"),
    "a key of no section": ({"fixed": {"weight_decay": 1}}, "weight_decay"),
    "a key that is none": ({"nuisance": {"lora.rnak": [1, 2]}}, "nuisance: lora.rnak"),
    "a choice that is refused": ({"nuisance": {"lora.r": [4, -1]}}, "nuisance: lora.r"),
    "a range that is refused": ({"nuisance": {"lora.lora_dropout": {**LOG, "high": 3}}}, "lora.lora_dropout"),
    "a base that is refused": ({"base": {**BASE, "lora": {"r": 0}}}, "lora.r"),
    "no evaluation": ({"fixed": {"training.eval_strategy": "no"}}, "judged by eval_loss"),
    "nothing to evaluate": ({"base": {**BASE, "data": {"train": "x/y"}}}, "training.eval_strategy"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named_with_its_key(tmp_path, name):
    values, says = WRONG[name]
    with pytest.raises(UserError) as raised:
        read_study_file(written(tmp_path, **values))
    assert says in str(raised.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "asked.yaml"]


def test_all_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(UserError) as raised:
        read_study_file(written(tmp_path, steps=0, seeds=0, sampler="x", nuisance={RATE: LOG, "lora.rnak": [1, 2]}))
    text = str(raised.value)
    assert all(word in text for word in ("steps=0", "seeds=0", "sampler=x", "lora.rnak"))


def test_what_looks_for_the_number_of_steps_searches_constant_rates(tmp_path):
    path = written(tmp_path, nuisance=None, base={**BASE, "data": {"train": "owner/data", "format": "koalpaca"}})
    study = read_study_file(path, find="max_steps")
    assert (study.metric, study.sampler, study.trials, study.seeds) == (LOSS, "grid", 5, 1)
    assert study.space[RATE].grid() == [1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3]
    assert study.fixed["training.lr_scheduler_type"] == "constant"
    assert (study.fixed["lora.lora_dropout"], study.fixed["training.weight_decay"]) == (0.0, 0.0)
    assert study.folder == tmp_path / "study-max-steps"
    assert read_study_file(written(tmp_path), find="max_steps").space[RATE].grid() == RATES


def test_the_schema_has_the_keys_of_a_study():
    properties = study_schema()["properties"]
    assert set(properties) == set(KEYS)
    assert properties["sampler"]["enum"] == list(SAMPLERS)
    assert properties["nuisance"]["propertyNames"]["enum"] == [key.name for key in keys()]


@pytest.mark.parametrize(("name", "trials"), [("study.yaml", 6), ("study-sentiment.yaml", 12)])
def test_the_examples_are_studies(name, trials, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    values = yaml.safe_load((ROOT / "examples" / name).read_text(encoding="utf-8"))
    assert set(values) <= set(study_schema()["properties"])
    base = yaml.safe_load((ROOT / "examples" / values["base"]).read_text(encoding="utf-8"))
    base["model"]["name_or_path"] = "owner/model"  # the real ones are fetched by whoever runs the examples
    (tmp_path / name).write_text(yaml.safe_dump(values | {"base": base}))
    study = read_study_file(tmp_path / name)
    assert study.trials * study.seeds == trials
