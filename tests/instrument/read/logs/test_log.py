"""How the numbers of a log become a History."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lora_train.instrument.judge.explain import explain
from lora_train.instrument.read.logs import read_history
from lora_train.instrument.read.logs.log import frame_of


@pytest.mark.parametrize(
    ("written", "read"),
    [(1e300, math.inf), (-1e39, -math.inf), (3.4e38, 3.4e38), (1e-46, 0.0), (1.5e-45, 1.5e-45), (0.0, 0.0)],
)
def test_numbers_are_those_of_float32(written, read):
    frame = frame_of([{"step": 1.0, "loss": written}], ("step", "loss"))
    assert frame["loss"].tolist() == [read]
    assert frame.dtypes.tolist() == [np.float64, np.float64]


def test_rates_beyond_any_are_read_and_explained(tmp_path):
    lines = [f"{{'loss': 1.5, 'epoch': {n / 10}}}" for n in range(1, 10)]
    lines.append("{'eval_loss': 1.0, 'eval_runtime': 1.0, 'eval_samples_per_second': 1e300, "
                 "'eval_steps_per_second': 1e-300, 'epoch': 1.0}")  # fmt: skip
    (tmp_path / "a.log").write_text("\n".join(lines))
    history = read_history(tmp_path / "a.log")
    assert history.evals["eval_samples_per_second"].tolist() == [math.inf]
    assert explain(history)
