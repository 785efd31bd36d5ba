"""What is measured, kept, judged and shown; runs without the trainer.

from lora_train.instrument import load_run             reads a run; imports no torch
from lora_train.instrument import InstrumentCallback   records transformers' Trainer and TRL's SFTTrainer
from lora_train.instrument import Instrument           records a loop of your own
from lora_train.instrument import watch                records a tensor of your own
from lora_train.instrument import show_runs            all runs under a folder, in a notebook's cell
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach.callback import InstrumentCallback
    from .attach.instrument import Instrument
    from .board.static import show_runs
    from .read.load import load_run
    from .record.recorder import watch

__all__ = ["Instrument", "InstrumentCallback", "load_run", "show_runs", "watch"]

_HOME = {
    "Instrument": ".attach.instrument",
    "InstrumentCallback": ".attach.callback",
    "load_run": ".read.load",
    "show_runs": ".board.static",
    "watch": ".record.recorder",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
