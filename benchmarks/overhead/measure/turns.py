"""Takes turns between the contenders of a work, a step each on the same batch.

Every contender is a process of its own, so that its peak memory is its own; only one computes at a time, and who begins
changes from round to round. After its timed steps a contender takes one more in which what it does is counted, and
`instrumented` another in which its time is divided by kind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models import prepare
from ..rows import write_rows
from ..work import ROOT, Work, configuration

PROFILED = "instrumented"
N_EXTRA = 2  # steps after the timed ones, counted and profiled
LOG_TAIL = 2000  # characters


@dataclass
class Taken:
    """What a contender reported.

    Attributes:
        device: `CPU`, or the GPU's name.
        steps: wall, cpu (seconds), peak_mib, loss and supervised of every timed step, warm-up left out.
        counts: synchronisations, allocations, allocated_mib of a step.
        kinds: seconds of a step by kind; empty for all but PROFILED.
    """

    device: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, float] = field(default_factory=dict)


def measure(work: Work, contenders: Sequence[str], n_steps: Mapping[str, int]) -> dict[str, Taken]:
    """Runs a work.

    Args:
        n_steps: timed steps of each contender.

    Raises:
        RuntimeError: a contender died, or they did not see the same rows.
    """
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        model = prepare(work, folder / "model")
        running: dict[str, Process] = {}
        try:
            for contender, process in start(work, contenders, n_steps, model, folder):
                running[contender] = process
                process.wait()  # loading one at a time
            return take_turns(work, running, n_steps)
        finally:
            for process in running.values():
                process.kill()


def start(
    work: Work, contenders: Sequence[str], n_steps: Mapping[str, int], model: Path, folder: Path
) -> Iterator[tuple[str, Process]]:
    """Writes the rows and starts the contenders, each when it is asked for.

    Args:
        model: what `prepare` made.
        folder: for rows, settings and logs.
    """
    from lora_train.trainer.config.schema import Config
    from lora_train.trainer.model.load import load_tokenizer

    total = work.warm_up + max(n_steps.values()) + N_EXTRA + 1
    rows = folder / "rows.jsonl"
    settings = configuration(work, model, rows, folder, total)
    write_rows(rows, work, work.batch * total, load_tokenizer(Config.model_validate(settings)))
    for contender in contenders:
        yield contender, Process(contender, configuration(work, model, rows, folder / contender, total), folder)


def take_turns(
    work: Work, running: dict[str, Process], n_steps: Mapping[str, int], may_die: Collection[str] = ()
) -> dict[str, Taken]:
    """Lets loaded contenders take their steps. Whoever has taken all of them is ended and taken out of `running`.

    Args:
        may_die: contenders that are left out of the result if they die.

    Raises:
        RuntimeError: another one died, or they did not see the same rows.
    """
    taken = {contender: Taken(process.ready["device"]) for contender, process in running.items()}
    for names in rounds({contender: work.warm_up + n_steps[contender] for contender in running}):
        for contender in (name for name in names if name in running):
            try:
                taken[contender].steps.append(running[contender].answer("go"))
                if len(taken[contender].steps) == work.warm_up + n_steps[contender]:
                    finish(contender, taken[contender], running[contender])
                    del running[contender]
            except RuntimeError as error:
                if contender not in may_die:
                    raise
                print(error, flush=True)
                del running[contender], taken[contender]
    for found in taken.values():
        del found.steps[: work.warm_up]
    same_rows(taken)
    return taken


def finish(contender: str, taken: Taken, process: Process) -> None:
    """The steps after the timed ones. The process ends, and its memory is free for the others."""
    taken.counts = process.answer("count")
    if contender == PROFILED:
        taken.kinds = process.answer("profile")["kinds"]
    process.end()


def rounds(quota: Mapping[str, int]) -> list[list[str]]:
    """Who takes a step in each round, in which order: all that have steps left, another one first each time."""
    found = []
    for number in range(max(quota.values())):
        names = [name for name in quota if quota[name] > number]
        first = number % len(names)
        found.append(names[first:] + names[:first])
    return found


def same_rows(taken: Mapping[str, Taken]) -> None:
    """Raises RuntimeError unless all that trained were trained on the same number of tokens in every step."""
    seen: dict[int, tuple[str, int]] = {}
    for contender, found in taken.items():
        for number, step in enumerate(found.steps):
            if step["supervised"] is None:
                continue
            other, tokens = seen.setdefault(number, (contender, step["supervised"]))
            if tokens != step["supervised"]:
                raise RuntimeError(
                    f"step {number + 1}: {other} trained on {tokens} tokens, {contender} on {step['supervised']}"
                )


class Process:
    """A contender's process, loaded and waiting for its first step.

    Attributes:
        ready: what it said when it was loaded.
    """

    def __init__(self, contender: str, settings: dict[str, Any], folder: Path):
        path = folder / f"{contender}.json"
        path.write_text(json.dumps(settings))
        self._log = folder / f"{contender}.log"
        command = [sys.executable, "-m", "benchmarks.overhead.contender", contender, str(path)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
        self.ready: dict[str, Any] = {}

    def wait(self) -> None:
        """Until it is loaded.

        Raises:
            RuntimeError: it died; the end of what it printed is in the message.
        """
        self.ready = self._line()

    def answer(self, order: str) -> dict[str, Any]:
        """Lets it take a step.

        Args:
            order: what to measure in it, a key of contender.METERS.

        Raises:
            RuntimeError: it died; the end of what it printed is in the message.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are in the log
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"{self._process.args} died:\n{self._log.read_text()[-LOG_TAIL:]}")
        return json.loads(line)

    def end(self) -> None:
        """Lets it go: without an order it exits."""
        self._process.communicate()

    def kill(self) -> None:
        """Ends it after an error."""
        self._process.kill()
        self._process.communicate()
