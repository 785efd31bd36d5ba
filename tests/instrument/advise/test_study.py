"""Points, the scatter of seeds, and what they cannot tell apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train.instrument.advise import Study, advise, read_study
from lora_train.instrument.advise.sources import study_of
from lora_train.instrument.advise.study import CHANCE, TRUSTED, WORTH

from ..board.build import held
from .build import STEPS, calm, run, seeds, study

RATE = "training__learning_rate"


def test_runs_that_differ_in_their_seed_are_one_point():
    made = study(*seeds(1.0, 3, **{RATE: 1e-4}), *seeds(2.0, 2, **{RATE: 1e-3}))
    assert [(p.settings, len(p.trials)) for p in made.points] == [
        ({"training.learning_rate": 1e-4}, 3),
        ({"training.learning_rate": 1e-3}, 2),
    ]
    assert [p.mean for p in made.points] == pytest.approx([1.0, 2.0])


def test_a_seed_that_was_there_already_and_one_that_is_unknown_repeat_nothing():
    same = [run(np.full(12, level)) for level in (1.0, 1.02)]
    assert (len(study(*same).points), study(*same).repeats) == (2, 0)
    for one in same:
        del one.config["training"]["seed"]
    assert study(*same).repeats == 0


def test_sigma_is_pooled_over_the_points():
    made = study(*seeds(1.0, 6, 0.05, **{RATE: 1e-4}), *seeds(2.0, 6, 0.1, **{RATE: 1e-3}))
    squares = sum(float(np.sum((np.linspace(-1, 1, 6) * spread) ** 2)) for spread in (0.05, 0.1))
    assert made.repeats == 10 > TRUSTED
    assert made.sigma == pytest.approx(math.sqrt(squares / 10))


def test_few_repeats_are_drawn_towards_what_is_assumed():
    made = study(*seeds(1.001234, 2, 0.0, **{RATE: 1e-4}), *seeds(1.998766, 2, 0.0, **{RATE: 1e-3}))
    alone = study(run(np.full(12, 1.001234)), run(np.full(12, 1.998766), settings={"training.learning_rate": 1e-3}))
    assert 0 < made.sigma < alone.sigma == pytest.approx(0.01 / math.sqrt(2) * 1.5, rel=1e-3)


@pytest.mark.parametrize(("n", "threshold"), [(1, CHANCE * math.sqrt(2)), (3, CHANCE * math.sqrt(2 / 3)), (20, WORTH)])
def test_points_are_apart_by_more_than_seeds_are(n, threshold):
    made = study(*seeds(1.0, n, **{RATE: 1e-4}), *seeds(2.0, n, **{RATE: 1e-3}))
    a, b = made.points
    for factor, apart in ((0.99, False), (1.01, True)):
        b.mean = a.mean + factor * threshold * made.sigma
        assert made.apart(a, b) is apart


def test_keys_that_choose_no_weights_vary_nothing():
    other = {"training.output_dir": "x", "training.eval_steps": 5, "training.seed": 2, "training.keep_best": 2}
    assert study(run([1.0]), run([1.0], settings=other)).varied == []
    one, two = run([1.0]), run([1.0], settings={"lora.r": 4})
    assert study(one, two).varied == ["lora.r"]
    del two.config["lora"]["r"]  # not known of both
    assert study(one, two).varied == []


def test_evaluations_of_other_rows_are_not_ranked():
    other = run(np.full(12, 1.0), settings={"data.eval": "other.jsonl"})
    made = study(run(np.full(12, 2.0)), other)
    assert (made.rankable, made.best) == (False, None)


def test_a_run_short_of_its_steps_is_judged_only_where_no_other_is_there():
    short = run(np.full(12, 1.0), settings={"lora.r": 16}, planned=200)
    short.finished = False
    whole = run(np.full(12, 2.0))
    made = study(short, whole)
    assert [trial.letter for trial in made.unfinished] == ["A"]
    assert [trial.letter for trial in made.judged] == ["B"]
    assert [trial.letter for trial in study(short).judged] == ["A"]
    assert [trial.letter for trial in study(short, whole, early_stop="median").judged] == ["A", "B"]


def test_the_budget_is_not_the_same_while_a_run_is_short_of_its_steps():
    short, whole = run(np.full(12, 1.0), planned=200), run(np.full(12, 2.0), steps=200)
    assert next(one.key for one in advise(study(short, whole)) if one.rule == "P3") == "advise.p3_same"
    short.finished = False
    found = next(one for one in advise(study(short, whole)) if one.rule == "P3")
    assert (found.verdict, found.key, found.trials) == ("against", "advise.p3_unfinished", ("t0",))
    assert next(one for one in advise(study(short, whole, sampler="grid")) if one.rule == "P3").next("en") is None


def interrupted(*folders: Path, **facts: Any) -> Study:
    """A study of runs that made 100 of 200 steps, and of one that made all."""
    runs = [run(np.full(12, 1.0), settings={"lora.r": 2**at}, planned=200) for at in range(len(folders))]
    for short in runs:
        short.finished = False
    named = [(folder.name, folder, short) for folder, short in zip(folders, runs, strict=True)]
    return study_of([*named, ("whole", "runs/whole", run(np.full(12, 2.0), steps=200))], facts, judge=calm)


def go_on(made: Study) -> str | None:
    return next(one for one in advise(made) if one.rule == "P3").next("en")


@pytest.mark.parametrize(("saved", "left"), [((), "200 steps, about 0:01:40"), ((40, 90), "110 steps, about 55.0 s")])
def test_an_interrupted_run_goes_on_from_its_newest_checkpoint(tmp_path, saved, left):
    folder = tmp_path / "a run"
    for name in (*(f"checkpoint-{step}" for step in saved), "checkpoint-95.tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoint-99").write_text("no folder")
    settings = f"--config '{folder}/config.yaml' --resume auto 'training.output_dir={folder}'"
    assert go_on(interrupted(folder)) == f"lora-train {settings}   # {left}"


def test_a_run_that_still_runs_is_not_started_twice(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    with held(one):
        assert go_on(interrupted(one)) is None
        assert f"{other}/config.yaml" in str(go_on(interrupted(one, other)))
    assert f"{one}/config.yaml" in str(go_on(interrupted(one, other)))


@pytest.mark.parametrize(
    ("trainer", "command"),
    [
        ("trl", "trainer.train(resume_from_checkpoint=True)"),
        ("lora-train", "trainer.train(resume_from_checkpoint=True)"),
        ("axolotl", "auto_resume_from_checkpoints: true"),
        ("llamafactory", "resume_from_checkpoint: true"),
    ],
)
def test_a_run_of_another_program_goes_on_by_its_own_key(tmp_path, trainer, command):
    made = interrupted(tmp_path)
    made.trials[0].history.kind, made.trials[0].history.trainer = "log", trainer
    assert go_on(made) == command


def states(folder: Path, *ends: dict[str, Any]) -> list[Path]:
    """Folders of the stock Trainer whose runs made 60 of 100 steps."""
    made = []
    for at, end in enumerate(ends):
        path = folder / str(at)
        path.mkdir()
        log: list[dict[str, Any]] = [{"step": s, "epoch": s / 50, "loss": 2 - s / 100} for s in range(10, 61, 10)]
        log += [{"step": s, "epoch": s / 50, "eval_loss": 1.5 + abs(s - 30) / 100} for s in range(10, 61, 10)]
        state = {"global_step": 60, "max_steps": 100, "num_train_epochs": 2, "log_history": log, **end}
        (path / "trainer_state.json").write_text(json.dumps(state))
        made.append(path)
    return made


def stopping(counter: int, should_stop: bool) -> dict[str, Any]:
    """What the Trainer saves of EarlyStoppingCallback(early_stopping_patience=3) and of its own control."""
    own = {"args": {"early_stopping_patience": 3, "early_stopping_threshold": 0.0}}
    own["attributes"] = {"early_stopping_patience_counter": counter}
    control = {"args": {"should_training_stop": should_stop}, "attributes": {}}
    return {"stateful_callbacks": {"EarlyStoppingCallback": own, "TrainerControl": control}}


def test_a_run_that_ended_early_by_itself_is_judged(tmp_path):
    made = read_study(states(tmp_path, stopping(3, True), stopping(1, False)))
    early, cut_off = made.trials
    assert (early.history.finished, early.history.stopped_early, early.is_unfinished) == (True, True, False)
    assert (cut_off.history.finished, cut_off.history.stopped_early, cut_off.is_unfinished) == (False, False, True)
    assert [trial.letter for trial in made.judged] == ["A"]


def test_runs_of_a_longer_round_are_held_against_their_own_kind():
    """A later round is longer and has another schedule: neither is a value that was searched."""
    short = [run(np.full(12, level), settings={"lora.r": r, "training.learning_rate": rate}) for level, r, rate in
             ((2.0, 4, 1e-4), (2.0, 16, 2e-4), (2.2, 4, 3e-4), (2.2, 16, 1e-4))]  # fmt: skip
    decay = {"training.lr_scheduler_type": "warmup_stable_decay", "lora.r": 4, "training.learning_rate": 1e-4}
    long = [run(np.full(12, level), settings=decay | {"training.seed": n}, steps=300) for n, level in enumerate((1, 1))]
    planned = {"steps": STEPS, "rounds": [{"best": 2, "steps": 300}]}
    found = study(*short, *long, **planned)
    assert [len(one.trials) for one in found.rounds] == [4, 2]
    assert (found.searching.searched, found.deciding.trials) == (["lora.r", "training.learning_rate"], found.trials[4:])
    said = {(one.rule, one.values.get("key")): one.key for one in advise(found)}
    assert said["P3", None] == "advise.p3_rounds"
    assert said["P11", "lora.r"] == "advise.p11_unclear"  # 4 is best of all, of the longer round alone
    assert ("P11", "training.lr_scheduler_type") not in said
    assert study(*short, *long, **planned | {"rounds": [{"best": 2, "steps": 200}]}).rounds[0].trials == found.trials
    assert study(*short, **planned).searching.trials == found.trials[:4]
