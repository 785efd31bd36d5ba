"""Rows that stand out, among rows whose loss depends on their length and falls as the model learns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lora_train.instrument.judge.row_ranks import (
    FORGOTTEN,
    LEARNED,
    NEVER,
    ONCE,
    STEADY,
    backed_off,
    course,
    rank_rows,
    standing_out,
)


def drawn(seed: int, planted: dict[int, float], rows: int = 400, epochs: int = 2) -> pd.DataFrame:
    """Rows of 5 to 200 tokens; loss falls with length and step, and scatters as the root of the length does;
    `planted` are in units of that scatter.
    """
    draw = np.random.default_rng(seed)
    n = np.round(np.exp(draw.uniform(np.log(5), np.log(200), rows))).astype(int)
    own = draw.normal(0, 1, rows) * 1.5 / np.sqrt(n)
    lines = []
    for epoch in range(epochs):
        for place, row in enumerate(draw.permutation(rows)):
            step = (epoch * rows + place) // 4 + 1
            loss = 3 - 0.2 * np.log(n[row]) - 0.003 * step + own[row] + draw.normal(0, 0.3) / np.sqrt(n[row])
            loss += planted.get(int(row), 0.0) * 1.5 / np.sqrt(n[row])
            lines.append((step, 0, 0, row, n[row] + 10, n[row], loss * n[row], (loss / 40) ** 2))
    names = ["step", "micro_batch", "process", "row", "n_tokens", "n_supervised", "loss_sum", "sumsq"]
    frame = pd.DataFrame(lines, columns=names)
    frame["loss"] = frame["loss_sum"] / frame["n_supervised"]
    return frame.assign(grad_norm=np.sqrt(frame["sumsq"]) * 100 / frame["n_supervised"])


def test_what_is_planted_is_found_and_nothing_else():
    """Over 20 draws: planted rows are above nearly all others, and of others one in a hundred is far out."""
    hits, false, of = 0, 0, 0
    for seed in range(20):
        planted = dict.fromkeys(range(0, 400, 40), 4.0)
        found = rank_rows(drawn(seed, planted)).set_index("row")
        others = found.drop(list(planted))
        threshold = others["loss_z"].quantile(0.95)
        hits += int((found.loc[list(planted), "loss_z"] > threshold).sum())
        false += int((others["loss_z"] > 3.3).sum())
        of += len(others)
    assert hits >= 0.95 * 200
    assert false <= 0.01 * of


def test_a_gradient_that_is_large_for_its_loss_is_found_where_the_gradient_alone_is_not():
    """Rows of a loss 1.5 spreads below others with the gradient of one a spread above: both alone are ordinary."""
    ranks = {"grad_excess_z": 0.0, "grad_z": 0.0}
    for seed in range(10):
        planted = dict.fromkeys(range(0, 400, 40), -1.5)
        frame = drawn(seed, planted, epochs=1)
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.02, len(frame)))
        frame["grad_norm"] *= noise * np.where(frame["row"].isin(list(planted)), 1.3, 1.0)
        found = rank_rows(frame).set_index("row")
        for name in ranks:
            ranks[name] += found[name].rank(pct=True).loc[list(planted)].mean() / 10
    assert ranks["grad_excess_z"] > 0.9
    assert ranks["grad_z"] < 0.75


def test_length_and_time_are_taken_out():
    found = rank_rows(drawn(3, {}))
    assert abs(np.corrcoef(np.log(found["n_supervised"]), found["loss_z"])[0, 1]) < 0.1
    short, long = (found[own]["loss_z"] for own in (found["n_supervised"] < 20, found["n_supervised"] > 60))
    assert short.std() == pytest.approx(long.std(), rel=0.4)


def test_shares_are_of_all():
    frame = drawn(1, {})
    found = rank_rows(frame)
    assert found["share"].sum() == pytest.approx(1)
    assert found["token_share"].sum() == pytest.approx(1)
    row = frame.loc[frame["row"] == 7]
    own = found.set_index("row").loc[7]
    assert own["share"] == pytest.approx(row["sumsq"].sum() / frame["sumsq"].sum())
    assert own["loss"] == row["loss"].tolist()[0]
    assert own["loss_last"] == row["loss"].tolist()[-1]
    assert own["seen"] == 2


def test_rows_that_are_not_finite_bend_nobody():
    frame = drawn(2, {})
    before = rank_rows(frame).set_index("row")
    at = frame.index[frame["row"] == 5]
    frame.loc[at, ["loss", "loss_sum"]] = np.nan
    frame.loc[frame.index[frame["row"] == 6][:1], "sumsq"] = np.inf
    after = rank_rows(frame).set_index("row")
    assert after.loc[5, "not_finite"] == 2
    assert after.loc[6, "not_finite"] == 1
    assert after["not_finite"].sum() == 3
    others = before.index.difference([5, 6])
    assert (after.loc[others, "loss_z"] - before.loc[others, "loss_z"]).abs().max() < 0.2


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([2.0], ONCE),
        ([2.0, np.nan], ONCE),
        ([2.0, 1.2, 0.9], LEARNED),
        ([2.0, 1.0, 1.9], FORGOTTEN),
        ([2.0, 1.95, 2.02], NEVER),
        ([0.1, 0.09], STEADY),
    ],
)
def test_what_became_of_a_row(losses: list[float], word: str):
    assert course(np.array(losses)) == word


@pytest.mark.parametrize("n", [0, 1, 2, 5, 29])
def test_few_rows_are_compared_with_all_of_them(n: int):
    values = standing_out(np.arange(n, dtype="float64"), np.zeros(n))
    assert len(values) == n
    assert np.isfinite(values).all() == (n > 2 or n == 0)


def test_rows_that_are_all_alike_do_not_stand_out():
    frame = drawn(1, {})
    frame["loss"] = 1.0
    assert rank_rows(frame)["loss_z"].isna().all()


def test_a_gradient_that_overflowed_as_the_loss_scale_fell_says_nothing_of_its_row():
    metrics = pd.DataFrame({"step": [1, 2, 3], "skipped": [True, True, False], "loss_scale": [64.0, 32.0, 32.0]})
    assert (backed_off(metrics), backed_off(pd.DataFrame({"step": [1]}))) == ({1}, set())
    frame = drawn(4, {}, rows=40)
    frame.loc[frame["step"] <= 2, "sumsq"] = np.inf
    assert rank_rows(frame, backed_off(metrics))["not_finite"].sum() == 4, "of step 2 alone"
    assert rank_rows(frame)["not_finite"].sum() == 8
