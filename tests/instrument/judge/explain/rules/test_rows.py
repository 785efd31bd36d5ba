"""A few evaluations are decided by their rows; both rates are counted over random rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.judge.explain.finding import Finding
from lora_train.instrument.judge.explain.rules.evaluation import turned
from lora_train.instrument.judge.explain.rules.rows import paired_evaluations, soften, trained_on
from lora_train.instrument.read.eval_rows import EvaluationRows, write_rows
from lora_train.instrument.read.history import History
from lora_train.instrument.read.load import Run

from .....conftest import ROOT
from ..build import falling, history


def rows_of(rng: np.random.Generator, levels: list[float], noise: float = 0.08) -> list[EvaluationRows]:
    """100 rows as texts have them, long and short, hard and easy; an evaluation changes each, with a heavy tail."""
    tokens, level = rng.integers(5, 400, 100).astype("int32"), rng.lognormal(0.3, 0.5, 100)
    row = np.arange(1000, 1100, dtype="int32")
    return [
        EvaluationRows(row, tokens * level * factor * np.clip(1 + noise * rng.standard_t(3, 100), 0.2, 5), tokens,
                       row.astype("uint64"))
        for factor in levels
    ]  # fmt: skip


def run(folder: Path, evaluations: list[EvaluationRows], **more: object) -> History:
    folder.mkdir()
    steps = [10 * i + 10 for i in range(len(evaluations))]
    for step, rows in zip(steps, evaluations, strict=True):
        write_rows(folder, step, 0, rows)
    losses = [float(rows.loss_sum.sum() / rows.n_tokens.sum()) for rows in evaluations]
    made = history(**{"loss": falling(60), "evals": {"step": steps, "eval_loss": losses}, **more})  # type: ignore[arg-type]
    made.run = Run(folder)
    return made


def said(finding: Finding | None) -> str | None:
    if finding is not None:
        assert all(finding.sentence(lang) for lang in ("en", "ko"))
    return finding.key.removeprefix("explain.") if finding else None


@pytest.mark.parametrize("n", [2, 3, 5])
def test_ten_percent_on_a_hundred_rows_is_found_and_nothing_is_not(n: int, tmp_path: Path):
    found, false = 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rose = run(tmp_path / f"rose-{seed}", rows_of(rng, [1.0] * (n - 1) + [1.1]))
        same = run(tmp_path / f"same-{seed}", rows_of(rng, [1.0] * n))
        found += said(paired_evaluations(rose)) == "rows_overfit"
        false += said(paired_evaluations(same)) in ("rows_overfit", "rows_turned", "rows_rose", "rows_fell")
    assert found >= 38
    assert false <= 2


def test_a_rise_names_the_rows_and_what_training_did(tmp_path: Path):
    first, second = rows_of(np.random.default_rng(0), [1.0, 1.0], noise=0.0)
    second.loss_sum[:] *= 1.05
    second.loss_sum[[7, 3]] += (9000.0, 8000.0)
    finding = paired_evaluations(run(tmp_path / "a", [first, second]))
    assert finding is not None
    assert (finding.key, finding.verdict) == ("explain.rows_overfit", "wrong")
    assert finding.values["worst"].startswith("1,007, 1,003")
    assert finding.values["rose"] == 100
    rising = run(tmp_path / "b", [first, second], loss=falling(60)[::-1])
    assert said(paired_evaluations(rising)) == "rows_rose"
    level = run(tmp_path / "c", [first, second], loss=np.random.default_rng(0).normal(1.0, 0.05, 60))
    assert said(paired_evaluations(level)) == "rows_turned"


def test_a_fall_is_good_news(tmp_path: Path):
    finding = paired_evaluations(run(tmp_path / "a", rows_of(np.random.default_rng(0), [1.0, 0.8, 0.7])))
    assert finding is not None
    assert (finding.key, finding.verdict, finding.values["step"]) == ("explain.rows_fell", "healthy", 10)


def test_many_evaluations_and_runs_without_rows_are_left_to_the_means(tmp_path: Path):
    assert paired_evaluations(run(tmp_path / "a", rows_of(np.random.default_rng(0), [1.0] * 6))) is None
    assert paired_evaluations(history(loss=falling(60), evals={"step": [10, 20], "eval_loss": [1.0, 2.0]})) is None
    other = rows_of(np.random.default_rng(0), [1.0, 1.2])
    other[1].hash[0] += 1
    assert paired_evaluations(run(tmp_path / "b", other)) is None


def test_the_demo_that_overfits_is_named_and_so_is_that_it_was_trained_on():
    overfit = read_history(ROOT / "tests" / "runs" / "overfitting")
    assert paired_evaluations(overfit) is None
    assert said(turned(overfit)) == "overfitting"
    assert said(trained_on(overfit)) == "eval_is_train"
    assert trained_on(read_history(ROOT / "tests" / "runs" / "healthy")) is None


def test_rows_that_were_trained_on_are_said_after_the_run():
    made = history(loss=falling(60), evals={"step": [60], "eval_loss": [1.0]})
    made.env = {"eval_overlap": {"rows": 40, "exact": 20, "near": 2, "exact_rows": [[0, 0]], "near_rows": []}}
    finding = trained_on(made)
    assert finding is not None
    assert (said(finding), finding.verdict, finding.values["percent"]) == ("eval_trained_on", "watch", 55)
    made.env["eval_overlap"] |= {"exact": 1, "near": 0}
    few = trained_on(made)
    assert few is not None
    assert few.verdict == "note"
    made.env["eval_overlap"]["exact"] = 0
    assert trained_on(made) is None
    made.env["eval_overlap"] = {"rows": "many"}
    assert trained_on(made) is None


def test_good_news_of_rows_that_were_trained_on_is_a_note_and_a_rise_stays():
    taught = Finding("eval_loss", "watch", "explain.eval_is_train")
    flat, rose = (
        Finding("eval_loss", "healthy", "explain.eval_flat"),
        Finding("eval_loss", "wrong", "explain.overfitting"),
    )
    more = Finding("eval_loss", "watch", "explain.underfitting")
    loss = Finding("loss", "healthy", "explain.loss_falls")
    assert soften([flat, rose, more, loss]) == [flat, rose, more, loss]
    softened = soften([taught, flat, rose, more, loss])
    assert [finding.verdict for finding in softened] == ["watch", "note", "wrong", "note", "healthy"]
    assert softened[3].hint("en") is None
