"""Stands for a trial's process where what is tested is who runs it: replays a recorded run, and loads nothing.

python standin.py CONFIG      as lora_train.trainer.sweep.trial; its evaluation loss is a function of the rate
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import yaml

RECORDED = Path(__file__).parents[2] / "runs" / "healthy" / "metrics.jsonl"
SECONDS = 0.02
"""Of a step."""


def end_with_worker() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main(config_file: str) -> int:
    threading.Thread(target=end_with_worker, daemon=True).start()
    training = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))["training"]
    run = Path(training["output_dir"])
    run.mkdir(exist_ok=True)
    if training["learning_rate"] > 1:
        print("error: data.train is not there\nhint: name another")
        return 2
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for line in RECORDED.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["step"] > training["max_steps"]:
                break
            if "eval_loss" in row:
                row["eval_loss"] = 1 + training["learning_rate"] + 1 / row["step"]
            file.write(json.dumps(row) + "\n")
            file.flush()
            time.sleep(SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
