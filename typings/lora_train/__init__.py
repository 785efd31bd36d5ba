"""Trains LoRA adapters, and says in words what the numbers of a run mean, whoever trained it.

    from lora_train import train
    run = train("koalpaca.yaml", learning_rate=1e-4)     # a Run: run.metrics, run.stats(), run.explain(), run.report()

    from lora_train import explain, compare, load_run
    explain("runs/x")                                    # of lora-train, or of a checkpoint or log of another trainer

    from lora_train import InstrumentCallback
    trainer.add_callback(InstrumentCallback("runs/x"))   # records transformers' Trainer, whatever it trains

This file stands here because the package's folders stand at the top of the repository: setup.py puts them together.
Nothing is imported before it is asked for, but what keeps notes of bitsandbytes that nobody can act on out of the log.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .instrument.quiet import quiet_notes

if TYPE_CHECKING:
    from .instrument.attach.callback import InstrumentCallback
    from .instrument.attach.instrument import Instrument
    from .instrument.record.recorder import watch
    from .trainer.api.answers import compare, explain
    from .trainer.api.run import Run, load_run
    from .trainer.api.train import train
    from .trainer.errors import Stopped, UserError

    __version__: str

__all__ = [
    "Instrument", "InstrumentCallback", "Run", "Stopped", "UserError", "__version__", "compare", "explain", "load_run",
    "train", "watch",
]  # fmt: skip

_HOME = {
    "Instrument": "instrument.attach.instrument",
    "InstrumentCallback": "instrument.attach.callback",
    "Run": "trainer.api.run",
    "Stopped": "trainer.errors",
    "UserError": "trainer.errors",
    "compare": "trainer.api.answers",
    "explain": "trainer.api.answers",
    "load_run": "trainer.api.run",
    "train": "trainer.api.train",
    "watch": "instrument.record.recorder",
}

quiet_notes()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lora-vitals")
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
