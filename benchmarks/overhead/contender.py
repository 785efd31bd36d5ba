"""One contender: `python -m benchmarks.overhead.contender NAME CONFIG.json`.

Waits before every step for a line on standard input that says what to measure in it, and answers every step with a line
of JSON on standard output: what was measured, the loss, and the number of supervised tokens. The steps are those of the
contender's own loop, with all that happens between two of them.

    stock        transformers.Trainer and peft
    liger        the same with Liger-Kernel, as TrainingArguments.use_liger_kernel applies it
    items, histograms, debug, foreach
                 the same with what people use today to see every layer's numbers (watchers.py)
    unsloth, axolotl, lorafusion
                 the same loop on their models, on a GPU where they are installed (rivals.py)
    weights      the stock Trainer on all weights, without peft
    callback     the same with InstrumentCallback as it comes: every linear, every gradient, every step
    plain        lora-train with instrument.enabled=false
    instrumented lora-train as it comes: every site, every step, store and detectors
    plain_aten, aten
                 both without the C extension: neither its statistics nor its norms, gates, rotations and dropout
    heavy        the same with exponent histograms and the probe at every step instead of every 100
    floor        the matrix products alone (floor.py)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .measure.meter import Clock, Counts, device_name
from .measure.profile import Kinds
from .work import ALL_WEIGHTS

# contender -> its instrument section
OURS: dict[str, dict[str, Any]] = {
    "plain": {"enabled": False},
    "instrumented": {},
    "plain_aten": {"enabled": False},
    "aten": {},
    "heavy": {"histogram_every": 1, "probe_every": 1},
}
WITHOUT_EXTENSION = ("plain_aten", "aten")
WITH_STOCK = (
    "stock", "liger", "items", "histograms", "debug", "foreach", "unsloth", "axolotl", "lorafusion", *ALL_WEIGHTS,
)  # fmt: skip
CONTENDERS = (*WITH_STOCK, *OURS, "floor")
METERS: dict[str, Callable[[], Any]] = {"go": Clock, "count": Counts, "profile": Kinds}


class Gate:
    """Between two steps: reports the last one and waits to be let go."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(1), "w")  # what libraries print goes to the error stream
        os.dup2(2, 1)
        self._meter: Any = None

    def __call__(self, loss: Any, supervised: int | None) -> None:
        """Called where a step begins.

        Args:
            loss: of the step before, a number or a tensor, read when the clock has stopped.
            supervised: tokens the step before was trained on.
        """
        if self._meter is None:
            line = {"device": device_name()}
        else:
            line = self._meter.end()
            line |= {"loss": None if loss is None else float(loss), "supervised": supervised}
        print(json.dumps(line), file=self._pipe, flush=True)
        order = sys.stdin.readline().strip()
        if not order:
            os._exit(0)
        self._meter = METERS[order]()


def ours(settings: dict[str, Any], gate: Gate) -> None:
    """lora-train's own run, stopped before every step."""
    from lora_train.trainer.config.schema import Config
    from lora_train.trainer.loop import train as loop
    from lora_train.trainer.run.start import run

    step: Callable[..., Any] = loop.train_step
    last: list[Any] = [None, None]

    def gated(components: Any, rows: Any) -> Any:
        gate(*last)
        row = step(components, rows)
        last[:] = row[0], rows.n_supervised
        return row

    loop.train_step = gated
    run(Config.model_validate(settings), None)


def main() -> None:
    name, path = sys.argv[1:]
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    gate = Gate()
    if name == "floor":
        from .floor import train

        train(settings, gate)
    elif name in OURS:
        if name in WITHOUT_EXTENSION:
            from lora_train.kernels import cpu

            cpu.AVAILABLE = False
        ours(settings | {"instrument": OURS[name]}, gate)
    else:
        from .stock import train

        train(settings, name, gate)


if __name__ == "__main__":
    main()
