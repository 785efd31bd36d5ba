"""Starts a run again and again and kills each start at a random moment: python -m tests.trainer.run.kill_often CONFIG.

One process imports the libraries and forks a child for every start, which spares each of them ten seconds. Prints for
every start how far it came.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.console import quiet_libraries
from lora_train.trainer.run.start import run


def start(config_file: Path) -> int:
    child = os.fork()
    if child == 0:
        os._exit(run(read_config(config_file), "auto"))
    return child


def written(folder: Path) -> int:
    """Bytes of all logs: grows with every step."""
    return sum(path.stat().st_size for path in folder.glob("run*/metrics.jsonl"))


def main(config_file: Path, n_kills: int, longest: float, seed: int) -> int:
    quiet_libraries()
    moments = random.Random(seed)
    newest, patience = 0, longest
    for number in range(n_kills):
        before = written(config_file.parent)
        child = start(config_file)
        if number % 4:  # while it trains; else while it starts
            while written(config_file.parent) == before and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
        time.sleep(moments.uniform(0.0, patience))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = sorted(int(path.name.split("-")[1]) for path in config_file.parent.glob("run*/checkpoint-*[0-9]"))
        print(f"kill {number}: checkpoints {found}", flush=True)
        if found and found[-1] > newest:
            newest, patience = found[-1], longest
        elif number % 4:  # the machine may be slower now than when the time was taken
            patience *= 1.5
    _, status = os.waitpid(start(config_file), 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
