"""What a run holds while it trains, from its first step to its last; and the one way its state gets to disk."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from safetensors import SafetensorError

from ...instrument.messages import say
from ...instrument.read.eval_rows import EVALUATIONS, EvaluationRows, write_rows
from ..config.schema import Config
from ..console import Console
from ..data.load import listed
from ..log.streams import write_failed
from ..saved.state import Progress
from ..signals import heard, is_impatient, once
from .best import kept_steps
from .checkpoint import NotFinite, save_checkpoint
from .components import Components
from .run_log import RunLog
from .snapshots import Snapshots


@dataclass
class Stop:
    """Why a run ends before its last step: a signal, or the clock."""

    deadline: float = float("inf")
    signal: int = 0
    _gentle: bool = False
    _old: dict[int, Any] = field(default_factory=dict)

    def listen(self) -> None:
        """From here on a signal ends the run after the step in flight; a second one ends it at once."""
        self._gentle = True
        self.guard()

    def guard(self) -> None:
        """A signal raises KeyboardInterrupt, so that what is half written goes; in the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in heard():
            if number not in self._old:
                self._old[number] = signal.signal(number, self._received)

    def end(self) -> None:
        """Gives the signals back to who had them."""
        while self._old:
            signal.signal(*self._old.popitem())

    def _received(self, number: int, frame: FrameType | None) -> None:
        once(number)
        if not self._gentle or is_impatient(number, self.signal):
            raise KeyboardInterrupt(number)
        self.signal = self.signal or number

    def wanted(self, reserve: float) -> bool:
        """Whether to stop now, keeping `reserve` seconds before the deadline."""
        return bool(self.signal) or time.monotonic() + reserve > self.deadline


@dataclass
class Session:
    """One start of a run. While it is entered, steps are recorded; leaving it ends console and log.

    Attributes:
        components: model, adapter, optimizer, order of the rows.
        progress: where the run stands; steps and evaluations move it on.
        run_dir: where it writes.
        log: of its steps.
        console: says things to the user.
        stop: why it would end early.
        snapshots: of its last healthy states.
    """

    components: Components
    progress: Progress
    run_dir: Path
    log: RunLog
    console: Console
    stop: Stop
    snapshots: Snapshots = field(init=False)
    _rows_lost: bool = False
    _entered: ExitStack = field(init=False, default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.snapshots = Snapshots(self.components)

    def __enter__(self) -> Session:
        self._entered.callback(self.log.close)
        self._entered.callback(self.console.end)
        self.console.begin(self.progress.step, self.components.n_steps)
        if self.components.recorder is not None:
            self._entered.enter_context(self.components.recorder.active())
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def save(self) -> None:
        """Writes a checkpoint of the state now from the main process, and counts its time.

        Raises:
            Stopped: it could not be written, and training.on_write_error ends the run then.
        """
        started = time.perf_counter()
        if self.components.engine.is_main:
            self.write_checkpoint()
        self.components.engine.barrier()
        self.log.saved(time.perf_counter() - started)

    def keep_rows(self, step: int, rows: EvaluationRows) -> None:
        """Writes what each row of an evaluation cost; where the disk refuses, training.on_write_error decides.

        Raises:
            Stopped: it ends the run then.
        """
        if not self.components.engine.is_main:
            return
        lost = rows.row[~np.isfinite(rows.loss_sum)]
        if len(lost) and not self._rows_lost:
            self._rows_lost = True
            self.console.warn(
                say("eval_rows.nonfinite", step=step, n=len(lost), of=len(rows.row), rows=listed(lost.tolist()))
            )
        try:
            write_rows(self.run_dir, step, self.progress.start, rows)
        except OSError as error:
            write_failed(self.components.config, EVALUATIONS, error)
            self.console.warn(say("eval_rows.failed", step=step, what=error))

    def write_checkpoint(
        self, progress: Progress | None = None, config: Config | None = None, last: bool = False
    ) -> Path | None:
        """Writes a checkpoint; what cannot be written is said, and leaves nothing behind.

        Args:
            progress: of the state, if it is not that of the session.
            config: to go on with, if it is not that of the session.
            last: whether this start of the run ends with it in any case. No older checkpoint is removed then.

        Returns:
            its folder; None if the state is not finite or the disk refused it.

        Raises:
            Stopped: it could not be written, and training.on_write_error ends the run then; not if it is the `last`.
        """
        progress, training = progress or self.progress, self.components.config.training
        settings, name = (config or self.components.config).model_dump(), f"checkpoint-{progress.step}"
        keep = None if last else training.save_total_limit
        best = kept_steps(training, progress.evaluations)
        try:
            return save_checkpoint(self.run_dir, self.components, progress, settings, keep, best)
        except NotFinite as error:
            self.console.warn(say("save.not_finite", step=progress.step, name=error))
        except (OSError, SafetensorError) as error:
            if last:
                self.console.warn(say("save.failed_at_end", step=progress.step, what=error))
                return None
            write_failed(self.components.config, name, OSError(str(error)))
            self.console.warn(say("save.failed", step=progress.step, what=error))
        return None
