"""What a page holds of a run: no extreme is dropped, and a drift is forecast as it was then."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.read.compact import compact
from lora_train.instrument.read.load import load_run
from lora_train.instrument.read.store import COLUMNS, MetricsLog, Site, StatsWriter, write_sites
from lora_train.instrument.show.report.aggregate import GRIDS, MAX_CELLS, aggregate, histograms
from lora_train.instrument.show.report.data import encoded, layers, model_of

ABSMAX, SUMSQ, N_INF, N, N_ZERO, N_UNDERFLOW = (
    COLUMNS.index(name) for name in ("absmax", "sumsq", "n_inf", "n", "n_zero", "n_underflow")
)


def write_run(folder: Path, n_steps: int, n_sites: int, seed: int = 0) -> np.ndarray:
    """Random statistics; returns them, [steps, sites, columns]."""
    noise = np.random.default_rng(seed)
    sites = [Site(i, f"m.{i}", ("out", "lora_B.grad")[i % 2], (8,), "float16", i) for i in range(n_sites)]
    write_sites(folder, sites)
    metrics, stats = MetricsLog(folder, 0), StatsWriter(folder, 0, n_sites)
    rows = np.zeros((n_steps, n_sites, len(COLUMNS)))
    rows[..., SUMSQ] = noise.integers(1, 1000, rows.shape[:2])
    rows[..., ABSMAX] = noise.integers(1, 1000, rows.shape[:2])
    rows[..., N_INF] = noise.integers(0, 2, rows.shape[:2])
    rows[..., N], rows[..., N_ZERO], rows[..., N_UNDERFLOW] = 100, 50, noise.integers(0, 10, rows.shape[:2])
    for step in range(1, n_steps + 1):
        exponents = np.full((n_sites, 256), step) if step % 40 == 0 else None
        metrics.write({"step": step, "loss": 1.0, "loss_scale": 4.0})
        stats.write(step, rows[step - 1], exponents)
    metrics.close()
    stats.close()
    return rows


@pytest.mark.parametrize("compacted", [False, True])
def test_bins_keep_every_extreme(tmp_path, monkeypatch, compacted):
    rows = write_run(tmp_path, 130, 6)
    if compacted:
        compact(tmp_path)
    monkeypatch.setattr("lora_train.instrument.show.report.aggregate.MAX_CELLS", 60)
    monkeypatch.setattr("lora_train.instrument.show.report.aggregate.MIN_BINS", 10)
    grid = aggregate(load_run(tmp_path), np.arange(1, 131), {(0, step): 4.0 for step in range(1, 131)})
    assert grid is not None
    assert len(grid.bins) == 10
    assert (grid.bins[0, 0], grid.bins[-1, 1]) == (1, 130)
    scale = np.where(np.arange(6) % 2, 4.0, 1.0)
    norms = np.sqrt(rows[..., SUMSQ]) / scale
    lost = rows[..., N_UNDERFLOW] / (50 + rows[..., N_UNDERFLOW])
    for at, (first, last) in enumerate(grid.bins):
        own = slice(first - 1, last)
        assert grid.values["norm_max"][:, at] == pytest.approx(norms[own].max(0))
        assert grid.values["norm_min"][:, at] == pytest.approx(norms[own].min(0))
        assert grid.values["norm_mean"][:, at] == pytest.approx(norms[own].mean(0))
        assert grid.values["absmax"][:, at] == pytest.approx(rows[own, :, ABSMAX].max(0))
        assert grid.values["nonfinite"][:, at] == pytest.approx(rows[own, :, N_INF].sum(0))
        assert grid.values["underflow"][:, at] == pytest.approx(lost[own].max(0))
    assert grid.histogram_steps == [40, 80, 120]
    (first, *_) = histograms(load_run(tmp_path), grid)
    assert (first["step"], first["sites"], first["first"]) == (40, list(range(6)), [0] * 6)
    assert set(first["counts"][0].tolist()) == {round(8 * np.log2(41))}


def test_a_run_that_fits_keeps_a_column_for_each_step(tmp_path):
    write_run(tmp_path, 50, 4)
    grid = aggregate(load_run(tmp_path), np.arange(1, 51), {})
    assert grid is not None
    assert grid.bins.tolist() == [[step, step] for step in range(1, 51)]
    assert MAX_CELLS > 50 * 4
    assert np.isnan(grid.values["norm_max"][1]).all()  # of a gradient whose scale is unknown nothing is known


def test_a_drift_is_forecast_where_it_was_seen(tmp_path):
    sites = [Site(0, "m", "out", (8,), "float16", 0), Site(1, "n", "out", (8,), "float16", 1)]
    write_sites(tmp_path, sites)
    metrics, stats = MetricsLog(tmp_path, 0), StatsWriter(tmp_path, 0, 2)
    for step in range(1, 301):
        rows = np.zeros((2, len(COLUMNS)))
        rows[:, ABSMAX] = 20_000 + 100 * step, 50.0
        metrics.write({"step": step, "loss": 1.0})
        stats.write(step, rows, None)
    metrics.close()
    stats.close()
    shown = layers(read_history(tmp_path))
    assert shown is not None
    found = shown["forecasts"]
    assert {forecast["site"] for forecast in found} == {"m:out"}
    meets = (65_504 - 20_000) / 100
    assert found[0]["predicted_step"] == pytest.approx(meets, rel=0.1)
    assert found[0]["step"] < meets - 50


def test_sites_stand_where_they_are_in_the_model():
    names = ["h.0.mlp.up_proj:out", "h.11.mlp.up_proj:out", "lm_head:out", "h.0.experts.7.w1:in"]
    found = model_of(names)
    assert found["rows"] == ["0", "11", ""]
    assert found["columns"] == ["mlp.up_proj", "lm_head", "experts.7.w1"]
    assert found["tensors"] == ["out", "in"]
    assert found["places"] == [[0, 0, 0], [1, 0, 0], [2, 1, 0], [0, 2, 1]]


def test_layers_of_several_stacks_are_kept_apart():
    found = model_of(["vision.layers.0.q_proj:out", "text.layers.0.q_proj:out", "lm_head:out"])
    assert found["rows"] == ["vision.layers 0", "text.layers 0", ""]
    assert found["places"] == [[0, 0, 0], [1, 0, 0], [2, 1, 0]]


def test_grids_that_are_the_same_are_sent_once():
    one, other = np.arange(4, dtype=np.float32).reshape(2, 2), np.full((2, 2), np.nan, np.float32)
    values = {name: one if name.startswith("norm") else other for name in GRIDS}
    found = encoded(values)
    assert found["norm_max"] == {"as": "norm_min"}
    assert base64.b64decode(found["norm_min"]["base64"]) == one.tobytes()
    assert found["absmax"] is None
