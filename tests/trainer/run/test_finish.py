"""The last line of a run: what to do next, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_train.trainer.config.schema import Config
from lora_train.trainer.run.finish import interrupted, next_step
from lora_train.trainer.saved.state import Progress

CONFIG = {"model": {"name_or_path": "a/b"}, "data": {"train": "c/d"}}
SCORED = {**CONFIG, "model": {"name_or_path": "a/b", "task": "seq_cls"}}
SELDOM = {**CONFIG, "data": {"train": "c/d", "eval_fraction": 0.05}, "training": {"eval_strategy": "steps"}}
HEAL = {"step": 3, "kind": "forward", "module": "x"}


@pytest.mark.parametrize(
    ("config", "evaluations", "heals", "command", "why"),
    [
        (CONFIG, [], [], "lora-train chat runs/x", "too few evaluations"),
        (CONFIG, [(10, 2.0)], [], "lora-train chat runs/x", "too few evaluations"),
        (SCORED, [], [], "lora-train evaluate runs/x FILE", "too few evaluations"),
        (SELDOM, [(20, 2.0)], [], "lora-train chat runs/x", "training.eval_steps=4 would measure it"),
        (CONFIG, [(10, 2.0), (20, 1.5)], [], "lora-train lengthen runs/x --max-steps 40", "step 20"),
        (CONFIG, [(10, 1.5), (20, 2.0)], [], "lora-train advise runs/x", "best at step 10 and worse at step 20"),
        (CONFIG, [(10, float("nan")), (20, 2.0)], [], "lora-train chat runs/x", "too few evaluations"),
        (CONFIG, [(10, 1.5), (20, 2.0)], [HEAL], "lora-train explain runs/x", "healed (1)"),
    ],
)
def test_what_to_do_next(config, evaluations, heals, command, why):
    progress = Progress(step=20, evaluations=evaluations, heals=heals)
    line = next_step(Config.model_validate(config), progress, Path("runs/x"))
    assert line.startswith(f"next    {command} ")
    assert why in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([7], "; a checkpoint is in "),
        ([3, 5], "; the newest checkpoint is that of step 5 in "),
        ([], "; there is no checkpoint in "),
    ],
)
def test_a_run_that_stops_tells_only_of_a_checkpoint_that_is_there(tmp_path, kept, said):
    for step in kept:
        (tmp_path / f"checkpoint-{step}").mkdir()
    line = interrupted(tmp_path, 7, 20)
    assert line.startswith(f"stopped after step 7 of 20{said}")
    assert ("--resume" in line) == bool(kept)


def test_a_score_that_grows_is_better(monkeypatch):
    training = {"metric_for_best_model": "eval_accuracy"}
    config = Config.model_validate({**SCORED, "training": training})
    progress = Progress(step=20, evaluations=[(10, 0.7), (20, 0.9)])
    assert "lengthen runs/x --max-steps 40" in next_step(config, progress, Path("runs/x"))


def test_a_folder_with_a_space_can_be_pasted():
    progress = Progress(step=20, evaluations=[(10, 2.0), (20, 1.5)])
    line = next_step(Config.model_validate(CONFIG), progress, Path("my runs/x"))
    assert "lora-train lengthen 'my runs/x' --max-steps 40 " in line
