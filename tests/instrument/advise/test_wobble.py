"""What makes the end of a run wobble (P18), where its micro-batches show how much of a step is noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lora_train.instrument.advise.rules.stability import late_wobble

from ..judge.explain.build import history
from ..judge.explain.rules.test_norms import FakeRun
from .build import study

STEPS, K = 80, 8


def wobbling(noise: float, recorded: bool = True):
    """A run whose rate decayed and whose evaluations scatter; a row's gradient is 1 along and `noise` across."""
    draw = np.random.default_rng(0)
    made = history(
        loss=np.linspace(2, 1, STEPS),
        grad_norm=np.sqrt(np.full(STEPS, 1 + noise**2 / K)),
        learning_rate=np.linspace(1e-3, 0, STEPS),
        evals={
            "step": list(range(2, STEPS + 1, 2)),
            "eval_loss": (1 + 0.1 * draw.standard_normal(STEPS // 2)).tolist(),
        },
    )
    made.steps["supervised_tokens"], made.steps["supervised_tokens_squared"] = 10 * K, 100 * K
    made.config = {"training": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": K}}
    whole = 1 + noise**2 / K + 0.01 * draw.standard_normal(STEPS)
    rows = [(step, "w.grad", whole[step - 1], (1 + noise**2) / K) for step in range(1, STEPS + 1)]
    if recorded:
        made.run = FakeRun(pd.DataFrame(rows, columns=["step", "site", "sumsq", "micro_sumsq"]))  # pyright: ignore[reportAttributeAccessIssue]
    return made


@pytest.mark.parametrize(
    ("noise", "recorded", "key", "percent"),
    [
        (8.0, True, "advise.why_noise", 89),
        (0.5, True, "advise.why_no_noise", 3),
        (8.0, False, "advise.why_batch", None),
    ],
)
def test_the_batch_is_blamed_as_far_as_its_noise_is_known(noise, recorded, key, percent):
    (found,) = late_wobble(study(wobbling(noise, recorded)))
    assert found.verdict == "against"
    why = found.values["why"]
    assert why.key == key
    if percent is not None:
        assert (why.values["rows"], why.values["percent"]) == (K, pytest.approx(percent, abs=2))
