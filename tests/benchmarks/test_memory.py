"""Predictions against the resident set of real runs, each in a process of its own.

Without the gaps of the heap, which a busy machine changes: 638 to 679 MiB with them in three runs beside others, 551 to
552 without.
"""

import pytest

from benchmarks.memory import compared

LIMIT = 0.15


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("memory")


@pytest.mark.parametrize("case", ["llama-nf4"])  # the benchmark prints the others, half a minute each
def test_prediction_is_within_15_percent_of_the_measured_peak(case, folder):
    row = compared(case, folder, gaps=False)
    assert abs(row.error) < LIMIT, row
