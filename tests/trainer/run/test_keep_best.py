"""A run with training.keep_best: the checkpoints of its best evaluations are there at the end, beside the newest."""

from __future__ import annotations

from pathlib import Path

from lora_train.instrument.advise import advise, read_study
from lora_train.instrument.read.store import read_metrics
from lora_train.trainer.loop.checkpoint import checkpoints, step_of
from lora_train.trainer.run.start import run

from ..loop.test_train import make_config


def test_the_best_evaluations_keep_their_checkpoints(tiny_models, tmp_path):
    training = {
        "output_dir": str(tmp_path / "run"), "max_steps": 8, "learning_rate": 0.05, "eval_strategy": "steps",
        "eval_steps": 1, "save_steps": 3, "save_total_limit": 1, "keep_best": 2,
    }  # fmt: skip
    config = make_config(tiny_models["gpt_neox"], **training)
    data = config.data.model_copy(update={"eval_fraction": 0.2})
    assert run(config.model_copy(update={"data": data}), None) == 0
    folder = Path(training["output_dir"])
    losses = {row["step"]: row["eval_loss"] for row in read_metrics(folder) if "eval_loss" in row}
    best = sorted(losses, key=lambda step: losses[step])[:2]
    assert len(losses) == 8
    assert {step_of(path) for path in checkpoints(folder)} == {*best, 8}
    (advice,) = [advice for advice in advise(read_study([folder])) if advice.rule == "P5"]
    assert advice.verdict == "answered"
    assert advice.values["nearest"] in {*best, 8}
