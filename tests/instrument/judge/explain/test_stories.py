"""Logs that people brought because they were read wrongly, each as small as it can be, read from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain, lines, read_history


def said(path: Path) -> tuple[dict[str, str], str]:
    """Verdicts by key, and the English text; the Korean one has to be there as well."""
    history = read_history(str(path))
    found = explain(history)
    korean = lines(history, found, "ko")
    assert not [line for line in korean if "{" in line or "nan" in line]
    return {f.key.removeprefix("explain."): f.verdict for f in found}, "\n".join(lines(history, found, "en"))


def state(path: Path, records: list[dict[str, Any]], **facts: Any) -> Path:
    file = path / "trainer_state.json"
    last = records[-1]["step"]
    file.write_text(json.dumps({"log_history": records, "global_step": last, "max_steps": last} | facts))
    return file


def test_five_lines_of_a_hundred_steps_each_have_fallen(tmp_path: Path):
    losses, evals = (1.37, 1.21, 0.66, 0.52, 0.45), (1.34, 0.93, 0.66, 0.55, 0.48)
    records: list[dict[str, Any]] = []
    for i, (loss, other) in enumerate(zip(losses, evals, strict=True), 1):
        records.append({"step": 100 * i, "epoch": 0.2 * i, "loss": loss, "learning_rate": 5e-5 - 2e-6 * i})
        records.append({"step": 100 * i, "epoch": 0.2 * i, "eval_loss": other, "eval_accuracy": 0.3 + 0.1 * i})
    keys, text = said(state(tmp_path, records, max_steps=2400))
    assert keys["loss_fell"] == "healthy"
    assert "loss_short" not in keys
    assert "step 500 of 2,400" in text
    assert "5 lines of 100 steps each" in text


def test_a_notebooks_table_that_overfits(tmp_path: Path):
    path = tmp_path / "cell.txt"
    train = np.linspace(2.13, 1.05, 10)
    evals = (2.1, 1.9, 1.81, 1.79, 1.78, 1.83, 1.89, 1.94, 2.0, 2.05)
    rows = [f"{10 * i}\t{a:.6f}\t{b:.6f}" for i, (a, b) in enumerate(zip(train, evals, strict=True), 1)]
    path.write_text("\n".join([" [100/100 12:34, Epoch 1/1]", "Step\tTraining Loss\tValidation Loss", *rows]))
    keys, text = said(path)
    assert keys["overfitting"] in ("watch", "wrong")
    assert "lowest at step 50" in text


@pytest.mark.parametrize("gap", ["    ", "\t"])
def test_a_notebooks_table_that_ends_as_zero(tmp_path: Path, gap: str):
    path = tmp_path / "cell.txt"
    losses = [2.1345, *[0.0] * 10]
    path.write_text("\n".join([f"Step{gap}Training Loss", *(f"{i}{gap}{x:.6f}" for i, x in enumerate(losses, 1))]))
    keys, text = said(path)
    assert keys["zero_unknown_rate"] == "wrong"
    assert "From step 2 on every loss was NaN or inf" in text
    assert "not overfitting" in text


@pytest.mark.parametrize("norm", ["nan", "inf"])
def test_gradients_that_are_never_finite(tmp_path: Path, norm: str):
    path = tmp_path / "console.log"
    losses = 4.6 + 0.05 * np.random.default_rng(0).standard_normal(30)
    line = "{{'loss': {:.4f}, 'grad_norm': {}, 'learning_rate': 0.0001, 'epoch': {:.2f}}}"
    path.write_text("\n".join(line.format(loss, norm, 0.02 * i) for i, loss in enumerate(losses)))
    keys, text = said(path)
    assert keys["gradient_never_finite"] == "wrong"
    assert "loss_flat" not in keys
    assert "bf16" in text
    without = tmp_path / "without.log"
    without.write_text("\n".join(f"{{'loss': {loss:.4f}, 'learning_rate': 0.0001}}" for loss in losses))
    assert "grad_norm" not in {key.partition(" ")[0] for key in said(without)[1].splitlines()}


@pytest.mark.parametrize("ended", [True, False])
def test_the_last_step_is_not_the_last_that_was_logged(tmp_path: Path, ended: bool):
    records = [{"step": 10 * i, "loss": 2 - 0.05 * i, "learning_rate": 1e-4 * (1 - i / 16)} for i in range(1, 16)]
    _, text = said(state(tmp_path, records, global_step=156, max_steps=156 if ended else 400))
    assert "finished at step 156" in text if ended else "step so far is 156" in text
    assert "at step 150" in text  # the rate that was logged


def test_a_learning_rate_of_five_destroys(tmp_path: Path):
    losses = [1.637, 11.8, 10.9, 10.6, *[10.4] * 6]
    records = [{"step": i, "loss": x, "learning_rate": 5.0, "grad_norm": 1.0} for i, x in enumerate(losses, 1)]
    keys, text = said(state(tmp_path, records))
    assert keys["loss_blew_up_rate"] == "wrong"
    assert keys["rate_far"] == "watch"
    assert "It began at 1.64" in text
    records[0]["loss"] = 344_093.0
    assert said(state(tmp_path, records))[0]["no_model"] == "wrong"


def test_llamafactorys_log_counts_its_own_steps_once(tmp_path: Path):
    path = tmp_path / "trainer_log.jsonl"
    texts = []
    for i in range(1, 91):
        record: dict[str, Any] = {"current_steps": 10 * i, "total_steps": 900, "loss": 1 + np.exp(-i / 20)}
        record |= {"lr": 2e-4 * (1 - i / 91), "epoch": i / 30, "percentage": 100 * i / 90, "elapsed_time": "0:01:00"}
        texts += [json.dumps(record)] * 2
        if not i % 30:
            texts.append(json.dumps({"current_steps": 10 * i, "total_steps": 900, "eval_loss": 1.5, "epoch": i / 30}))
    path.write_text("\n".join(texts))
    history = read_history(str(path))
    assert (len(history.steps), list(history.evals["step"])) == (90, [300, 600, 900])
    assert (history.trainer, history.finished, history.last_step) == ("llamafactory", True, 900)
    assert "Finished at step 900" in said(path)[1]


@pytest.mark.parametrize("norm", ["nan", "0.0", "None", None])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_a_loss_of_zero_from_the_first_line(tmp_path: Path, norm: str | None, n: int):
    path = tmp_path / "console.log"
    middle = "" if norm is None else f"'grad_norm': {norm}, "
    path.write_text(
        "\n".join(f"{{'loss': 0.0, {middle}'learning_rate': {2e-4 - 5e-6 * i}, 'epoch': {i}}}" for i in range(n))
    )
    keys, text = said(path)
    assert keys["zero_no_labels" if norm == "0.0" else "zero_from_start"] == "wrong"
    assert "last real loss" not in text


@pytest.mark.parametrize("bad", ["NaN", "null", "Infinity"])
def test_evaluations_that_are_not_finite_are_named(tmp_path: Path, bad: str):
    records = [{"step": i, "loss": 2 - 0.02 * i, "learning_rate": 1e-4} for i in range(1, 31)]
    path = state(tmp_path, records)
    text = path.read_text()
    evals = ", ".join(
        f'{{"step": {step}, "eval_loss": {bad}, "eval_runtime": 1.5, "epoch": 0.1}}' for step in (10, 20, 30)
    )
    path.write_text(text.replace("}], ", f"}}, {evals}], ", 1))
    keys, said_text = said(path)
    assert keys["eval_nan"] == "wrong"
    assert "10, 20, 30" in said_text


def test_a_scale_that_sank_until_gradients_are_zero_is_told_with_what_lowered_it(tmp_path: Path):
    nan, last = float("nan"), 90
    norms = [nan if i > 20 and i % 3 == 0 else 0.0 if i > 60 else 3.0 for i in range(1, last + 1)]
    losses = [2 + 0.95**i for i in range(1, last + 1)]
    records = [
        {"step": i, "loss": x, "grad_norm": norm, "learning_rate": 1e-4}
        for i, (x, norm) in enumerate(zip(losses, norms, strict=True), 1)
    ]
    keys, text = said(state(tmp_path, records))
    assert (keys["gradient_none_scale"], keys["backward"]) == ("wrong", "watch")
    assert "gradient_none_since" not in keys
    assert "From step 61 on the gradient is exactly 0 (20 lines" in text
    assert "Each gradient that was not finite before (14 times) lowered the loss scale" in text


def test_a_gradient_of_zero_is_not_healthy_and_asks_for_no_higher_rate(tmp_path: Path):
    losses = [6.2, 6.3, *[6.238] * 28]
    records = [
        {"step": i, "loss": x, "grad_norm": 3.0 if i < 3 else 0.0, "learning_rate": 0.05}
        for i, x in enumerate(losses, 1)
    ]
    keys, text = said(state(tmp_path, records))
    assert keys["gradient_none_since"] == "wrong"
    assert "loss_flat" not in keys
    assert "three times as high" not in text
