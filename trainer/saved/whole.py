"""Whether a checkpoint is whole: every file there, its SHA-256 as it was written, the state understood, no NaN."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ...instrument.messages import say
from .state import Torn, read_state
from .sums import ADAPTER, OPTIMIZER, STATE, wrong_sum


def what_is_torn(folder: Path) -> str:
    """What keeps a checkpoint from being whole and healthy; empty if nothing."""
    try:
        for name in (ADAPTER, OPTIMIZER, STATE):
            if not (folder / name).is_file():
                return say("saved.missing", file=name)
        return wrong_sum(folder) or (read_state(folder) and "") or _not_finite(folder)
    except Torn as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _not_finite(folder: Path) -> str:
    """The first tensor with a NaN or an infinity; empty if there is none."""
    for file in (ADAPTER, OPTIMIZER):
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (no mapping)
                    value = tensors.get_tensor(name)
                    if value.is_floating_point() and not value.isfinite().all():
                        return say("saved.not_finite", file=file, name=name)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            return say("saved.unreadable", file=file, what=error)
    return ""
