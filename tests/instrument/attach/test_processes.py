"""The callback where a training runs in several processes: the first one records, and every one trains as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lora_train.instrument import load_run

WORK = """
import json, sys
from pathlib import Path
from lora_train.instrument import InstrumentCallback
from {tests}.test_peers import trainer
from {tests}.test_callback import lora
folder, model = Path(sys.argv[1]), lora(Path(sys.argv[2]))
how = {{"ddp_backend": "gloo", "eval_strategy": "steps", "eval_steps": 2, "use_cpu": True}}
training = trainer(model, folder / "out", gradient_accumulation_steps=2, per_device_train_batch_size=2, **how)
if sys.argv[3] == "watched":
    training.add_callback(InstrumentCallback(folder / "run", fuse=True))
training.train()
weights = [float(p.double().norm()) for p in model.parameters() if p.requires_grad]
(folder / f"{{training.args.process_index}}.json").write_text(json.dumps(weights))
"""


def test_two_processes_train_as_without_it_and_the_first_one_records(tiny_models, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(WORK.format(tests=__package__))
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    found = {}
    for how in ("plain", "watched"):
        folder = tmp_path / how
        folder.mkdir()
        done = subprocess.run(
            [*command, str(folder), str(tiny_models["llama"]), how],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[how] = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found["watched"][0] == found["watched"][1]
    for one, other in zip(found["plain"], found["watched"], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    run = load_run(tmp_path / "watched" / "run")
    assert run.metrics()["step"].tolist() == [1, 2, 3]
    assert run.metrics()["tokens"].tolist() == [48] * 3  # of the first process
    assert not (tmp_path / "watched" / "run-2").exists()
