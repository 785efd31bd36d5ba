"""The head of a classifier is recorded as its adapter is: all of grad_norm has a site, every micro-batch its share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_train import train
from lora_train.instrument.read.history import TRAINED

from ..classifiers import rows_of_kind, tiny, write


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_sites_hold_all_of_the_gradient(tmp_path: Path, family: str, accumulation: int):
    rows = write(tmp_path / "rows.jsonl", rows_of_kind("single", n=24))
    run = train(
        {
            "model": {"name_or_path": str(tiny(tmp_path, family)), "task": "seq_cls"},
            "lora": {"r": 4, "lora_alpha": 8},
            "data": {"train": str(rows)},
            "training": {
                "output_dir": str(tmp_path / "run"), "max_steps": 3, "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": accumulation, "learning_rate": 1e-2, "logging_steps": 1,
            },
        }
    )  # fmt: skip
    stats = run.stats(TRAINED, ["sumsq", "micro_sumsq"])
    assert stats["site"].astype(str).str.contains("classifier|score").any()
    sums: Any = stats.groupby("step")[["sumsq", "micro_sumsq"]].sum()
    # float32 sums of a few thousand squares
    assert np.sqrt(sums["sumsq"]).to_numpy() == pytest.approx(run.metrics["grad_norm"].to_numpy(), rel=1e-4)
    if accumulation == 1:
        assert sums["micro_sumsq"].to_numpy() == pytest.approx(sums["sumsq"].to_numpy(), rel=1e-4)
    else:
        # four vectors c_i: |sum c_i|^2 <= 4 sum |c_i|^2
        assert (sums["micro_sumsq"] > sums["sumsq"] / accumulation * (1 - 1e-4)).all()
