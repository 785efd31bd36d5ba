"""Two runs side by side: what differs, what follows, where they part, which is better."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from lora_train.instrument.judge.explain import read_history
from lora_train.instrument.show.compare import compare_runs, comparison_lines

from ....conftest import ROOT
from ...judge.explain.build import falling, history

RUNS = ROOT / "tests" / "runs"


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    return tuple(shutil.copytree(RUNS / "healthy", tmp_path / name) for name in ("one", "two"))  # type: ignore[return-value]


def findings(*paths: Path) -> dict:
    comparison = compare_runs([read_history(path) for path in paths])
    for lang in ("en", "ko"):
        assert comparison_lines(comparison, lang)
    return {finding.key.removeprefix("compare."): finding.values for finding in comparison.findings}


def change(run: Path, **keys: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in keys.items():
        section, name = key.split("__")
        config[section][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_the_same_run_twice_is_the_same_to_the_bit(twins):
    found = findings(*twins)
    assert found["identical"]["n"] == 150
    assert "same_settings" in found
    assert "loss_alike" in found


def test_runs_that_were_meant_to_be_the_same_part_at_a_step_and_a_site(twins):
    metrics = twins[1] / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        if row.get("step", 0) >= 30 and "loss" in row:
            row["loss"] += 1e-7
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = findings(*twins)
    assert found["parts_unasked"]["step"] == 30


def test_the_site_that_parts_first_is_named(twins, monkeypatch):
    one, two = (read_history(path) for path in twins)
    two.steps.loc[two.steps["step"] >= 30, "loss"] += 1e-7
    assert two.run is not None
    stats = two.stats
    sites = list(two.run.sites["name"])

    def changed(*args, **kwargs):
        frame = stats(*args, **kwargs)
        assert frame is not None
        frame.loc[(frame["step"] == 29) & (frame["site"] == sites[5]), "sumsq"] += 1.0
        return frame

    monkeypatch.setattr(two, "stats", changed)
    (parted,) = [finding for finding in compare_runs([one, two]).findings if finding.key.startswith("compare.parts")]
    assert parted.key == "compare.parts_unasked_site"
    assert (parted.values["site_step"], parted.values["site"]) == (29, sites[5])


def test_several_changes_at_once_are_warned_of_and_harmless_ones_are_not_counted(twins):
    change(
        twins[1], training__learning_rate=5e-3, lora__r=8, training__logging_steps=1, training__output_dir="elsewhere"
    )
    found = findings(*twins)
    assert found["several"]["keys"] == "lora.r, training.learning_rate"
    assert "interval" in found
    change(twins[1], lora__r=16)
    assert "several" not in findings(*twins)


def test_another_number_of_steps_is_another_slope():
    rate = lambda n: 1e-3 * (1 - np.arange(60) / n)  # noqa: E731
    runs = [
        history(loss=falling(60), learning_rate=rate(n), config={"training": {"max_steps": n, "learning_rate": 1e-3}})
        for n in (60, 120)
    ]
    found = {finding.key.removeprefix("compare."): finding.values for finding in compare_runs(runs).findings}
    assert found["slope"]["step"] == 2
    assert "training.max_steps" in found["slope"]["cause"]


def test_batches_order_and_outcomes():
    big = {"training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}}
    small = {"training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}}
    noise = np.random.default_rng(0).lognormal(0, 1.0, 60)
    evals, worse = {"step": [30, 60], "eval_loss": [2.0, 1.5]}, {"step": [30, 60], "eval_loss": [2.0, 1.8]}
    high, low = falling(60), falling(60, last=1.0)
    runs = [
        history(
            loss=high, grad_norm=noise**0.1, tokens=9, tokens_per_second=100, host_memory_gib=4, config=big, evals=evals
        ),
        history(
            loss=low, grad_norm=noise, tokens=9, tokens_per_second=200, host_memory_gib=2, config=small, evals=worse
        ),
    ]
    found = {finding.key.removeprefix("compare."): finding.values for finding in compare_runs(runs).findings}
    assert found["batches"]["listed"] == "A 16, B 4"
    assert "per_device_train_batch_size" in found["order"]["cause"]
    assert found["loss_better"]["winner"] == "B"
    assert found["winner_evals"]["winner"] == "A"
    assert (found["speed_better"]["winner"], found["speed_better"]["factor"]) == ("B", pytest.approx(2))
    assert (found["memory_better"]["winner"], found["memory_better"]["percent"]) == ("B", pytest.approx(50))
    assert (found["norm_spread"]["widest"], found["norm_spread"]["calmest"]) == ("B", "A")


def test_stock_logs_can_be_compared(tmp_path):
    found = findings(RUNS / "stock", RUNS / "stock")
    assert found["identical"]["n"] > 10


def test_of_logs_nothing_is_said_that_they_do_not_tell(tmp_path):
    for name, rate in (("a", 2e-4), ("b", 6e-4)):
        log = [{"loss": 2 - i / 100, "grad_norm": 1.0, "learning_rate": rate * (1 - i / 60)} for i in range(40)]
        (tmp_path / name).write_text("\n".join(map(str, log)))
    found = findings(tmp_path / "a", tmp_path / "b")
    assert {"same_settings", "slope", "parts_unasked", "several"} & found.keys() == set()
    assert found["rates_part"]["step"] == 1
    found = findings(RUNS / "healthy", tmp_path / "a")
    assert {"several", "order", "surroundings", "interval"} & found.keys() == set()
