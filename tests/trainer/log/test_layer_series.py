from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.read.store import COLUMNS, Site
from lora_train.trainer.log.layer_series import MAX_SERIES, LayerSeries

SUMSQ, ABSMAX = COLUMNS.index("sumsq"), COLUMNS.index("absmax")


def sites(n_blocks: int) -> list[Site]:
    kinds = (("q_proj", "lora_A.grad", "float32"), ("q_proj", "lora_B.grad", "float32"), ("norm", "out", "float16"))
    return [
        Site(3 * block + at, f"model.layers.{block}.{name}", tensor, None, dtype, 0)
        for block in range(n_blocks)
        for at, (name, tensor, dtype) in enumerate(kinds)
    ]


def test_a_block_has_its_norm_unscaled_and_its_peak():
    rows = np.full((36, len(COLUMNS)), np.nan)
    rows[:, SUMSQ], rows[:, ABSMAX] = np.arange(36), np.arange(36) * 10
    rows[[6, 7], SUMSQ] = 9.0, 16.0
    rows[11, ABSMAX] = np.nan
    values = LayerSeries(sites(12)).values(rows, loss_scale=4.0)
    assert values["grad_norm_by_layer/model.layers.02"] == pytest.approx(5.0 / 4.0)
    assert values["fp16_peak_by_layer/model.layers.02"] == 80.0
    assert "fp16_peak_by_layer/model.layers.03" not in values  # not looked at in this step
    assert list(values)[:12] == sorted(list(values)[:12])


def test_a_deep_model_sends_no_more_than_the_cap():
    values = LayerSeries(sites(100)).values(np.ones((300, len(COLUMNS))), loss_scale=1.0)
    assert len(values) == 2 * MAX_SERIES
    assert {"grad_norm_by_layer/model.layers.00", "grad_norm_by_layer/model.layers.99"} <= values.keys()


def test_what_is_not_finite_is_left_out():
    rows = np.full((36, len(COLUMNS)), np.inf)
    assert LayerSeries(sites(12)).values(rows, loss_scale=1.0) == {}
