"""The process of one trial: trains the configuration that it is given, and ends when its worker does.

    python -m lora_train.trainer.sweep.trial CONFIG

Its standard input is a pipe that the worker holds: at its end the worker is gone, and so is the trial.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from ...instrument.messages import say
from ..errors import UserError, in_words
from ..signals import interruptible

OUT_OF_MEMORY = 75
"""Exit code of a batch that did not fit."""


def main(config_file: str) -> int:
    """Trains; the exit code is that of lora-train, or OUT_OF_MEMORY."""
    threading.Thread(target=_end_with_worker, daemon=True).start()
    return interruptible(lambda: _train(Path(config_file)), say("cli.interrupted"))


def _end_with_worker() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold when Python ends
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # nobody is left who would read what it writes


def _train(config_file: Path) -> int:
    from ..checks.own_code import own_word
    from ..checks.read_config import read_config
    from ..console import note, quiet_libraries
    from ..hub import ask_first

    try:
        config = own_word(read_config(config_file, (), note), str(config_file), ())
        ask_first(config.model.name_or_path, config.model.revision)
        quiet_libraries()
        from ..run.start import run  # imports torch, which takes seconds

        return run(config, "auto")
    except UserError as error:
        print(error, file=sys.stderr)
        return OUT_OF_MEMORY if _of_memory(error) else 2
    except OSError as error:
        sentence = in_words(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        return 2


def _of_memory(error: UserError) -> bool:
    from ..loop.engine import OutOfMemory

    return isinstance(error.__cause__, OutOfMemory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
