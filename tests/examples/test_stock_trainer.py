from __future__ import annotations

import subprocess
import sys

from lora_train.instrument.judge.explain import explain, read_history

from ..conftest import COMMAND_ENVIRONMENT, DATA, ROOT


def test_two_lines_record_the_stock_trainer(tiny_models, tmp_path):
    script = ROOT / "examples" / "stock_trainer.py"
    command = [sys.executable, str(script), str(tiny_models["llama"]), str(DATA), str(tmp_path / "out")]
    result = subprocess.run(command, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    history = read_history(tmp_path / "out" / "instrument")
    assert history.steps["step"].tolist() == list(range(1, 31))
    assert {finding.topic for finding in explain(history)} >= {"outcome", "loss", "grad_norm", "learning_rate"}
