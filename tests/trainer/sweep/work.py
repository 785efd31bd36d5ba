"""A worker whose trials are replayed: python work.py STUDY_FOLDER. Prints the trials that it hears of."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_train.trainer.sweep.plan import of_folder
from lora_train.trainer.sweep.rounds import Planner
from lora_train.trainer.sweep.worker import Interrupted, Worker

STANDIN = (sys.executable, str(Path(__file__).with_name("standin.py")))


def main(folder: str) -> int:
    study, values = of_folder(Path(folder))
    worker = Worker(
        study,
        Planner(study, values["plan"]),
        lambda attempt, outcome: print(attempt.name, outcome["ended"], flush=True),
        lambda running: print("waits", *(one.name for one in running), flush=True),
        STANDIN,
    )
    print("ready", flush=True)
    try:
        worker.work()
    except Interrupted as error:
        return 128 + error.args[0]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
