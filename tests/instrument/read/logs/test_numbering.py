"""Steps of records that do not print them, from epochs of few digits."""

from __future__ import annotations

import pytest
from lora_train.instrument.read.logs.numbering import fill_steps, steps_per_epoch


def rows(*epochs: float | None) -> list[dict]:
    return [{"loss": 1.5} if epoch is None else {"loss": 1.5, "epoch": epoch} for epoch in epochs]


def steps(records, per_epoch, every=None) -> list[float] | None:
    return [row["step"] for row in records] if fill_steps(records, per_epoch, every) else None


@pytest.mark.parametrize("every", [1, 5, 10, 25, 37, 500])
@pytest.mark.parametrize("per_epoch", [31.25, 156.25, 1562.5, 20_000.0])
@pytest.mark.parametrize("digits", [2, 12])
def test_multiples_of_the_interval(every, per_epoch, digits):
    n = 40
    epochs = [round(every * i / per_epoch, digits) for i in range(1, n + 1)]
    got = steps(rows(*epochs), (per_epoch, per_epoch))
    if digits == 12:
        assert got == [every * i for i in range(1, n + 1)]
    elif got is not None:  # two digits of an epoch are few; what is said must be near
        assert (
            max(abs(step - per_epoch * epoch) for step, epoch in zip(got, epochs, strict=True)) <= 0.012 * per_epoch + 2
        )


def test_a_first_line_before_the_interval():
    epochs = [1 / 50, *(round(10 * i / 50, 4) for i in range(1, 8))]
    assert steps(rows(*epochs), (50, 50)) == [1, 10, 20, 30, 40, 50, 60, 70]


def test_steps_an_epoch():
    assert steps_per_epoch([], 300, 3) == (100, 100)
    last = {"train_runtime": 100.0, "train_steps_per_second": 0.313, "epoch": 1.0}
    assert steps_per_epoch([last], None, None) == pytest.approx((31.25, 31.35))
    assert steps_per_epoch(rows(0.1), None, None) is None


def test_lines_are_counted_where_nothing_tells():
    records = [*rows(0.1, 0.2), {"eval_loss": 1.0, "epoch": 0.2}]
    assert not fill_steps(records, None)
    assert [record["step"] for record in records] == [1, 2, 2]


def test_the_interval_that_the_console_names():
    assert steps(rows(None, None), None, 25) == [25, 50]


def test_epochs_that_begin_anew_tell_nothing():
    assert steps(rows(0.1, 0.2, 0.1), (100, 100)) is None


def test_an_evaluation_behind_the_last_line():
    records = [*rows(0.32, 0.64, 0.96), {"eval_loss": 1.0, "epoch": 1.0}]
    assert fill_steps(records, (156.25, 156.25))
    assert [record["step"] for record in records] == [50, 100, 150, 156]


@pytest.mark.parametrize("epoch", [1e300, 1e20])
def test_epochs_beyond_any_step_tell_nothing(epoch):
    records = rows(0.5, epoch)
    assert not fill_steps(records, (1e10, 1e10))
    printed = [{"loss": 1.5, "epoch": 1e-12, "step": 10.0}, {"loss": 1.4, "epoch": 2e-12, "step": 20.0}]
    evaluated = [*printed, {"eval_loss": 1.0, "epoch": epoch}]
    assert fill_steps(evaluated, None)
    assert evaluated[-1]["step"] == 20.0
