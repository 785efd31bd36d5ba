from __future__ import annotations

import json
import subprocess
import sys

from lora_train.instrument.store import METRICS, MetricsLog, read_metrics


def test_non_finite_values_are_null_and_lines_are_json(tmp_path):
    log = MetricsLog(tmp_path, start=0)
    log.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "tokens": 3})
    log.close()
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line) == {"start": 0, "step": 1, "loss": None, "grad_norm": None, "tokens": 3}


def test_each_line_is_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path, start=0)
    log.write({"step": 1, "loss": 2.0})
    assert len(read_metrics(tmp_path)) == 1


def test_reader_keeps_the_last_start_of_a_step_and_drops_torn_lines(tmp_path):
    first = MetricsLog(tmp_path, start=0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step)})
    first.write({"step": 2, "eval_loss": 0.5})
    first.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"start": 0, "step": 4, "lo')
    second = MetricsLog(tmp_path, start=1)
    second.write({"step": 3, "loss": 33.0})
    second.write({"train_runtime": 1.0})
    second.close()
    assert read_metrics(tmp_path) == [
        {"start": 0, "step": 1, "loss": 1.0},
        {"start": 0, "step": 2, "loss": 2.0},
        {"start": 0, "step": 2, "eval_loss": 0.5},
        {"start": 1, "step": 3, "loss": 33.0},
        {"start": 1, "train_runtime": 1.0},
    ]


def test_reading_a_run_imports_no_torch():
    code = "import sys, lora_train.instrument.store, lora_train.trainer.read_config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
