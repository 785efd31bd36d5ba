"""TensorBoard's event files, by the tensorboard package, which is an optional extra."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ..history import SourceError
from .log import Log
from .values import Record, canonical

PATTERN = "events.out.tfevents.*"
# What the Trainer says of the run as a whole, at its last step.
TOTAL = re.compile(r"train/(?:train_|total_flos)")
EXTRA = "pip install 'lora-vitals[tensorboard]'"


def read_events(path: Path) -> Log:
    """The scalars of an event file, or of all in a folder.

    Raises:
        SourceError: the package is missing, or the file is damaged.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    except ImportError as error:
        raise SourceError("source.no_tensorboard", path=path, command=EXTRA) from error
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events: Any = EventAccumulator(str(path), size_guidance={SCALARS: 0})
    try:
        events.Reload()
        tags = events.Tags()["scalars"]
        found = [(tag, event) for tag in tags for event in events.Scalars(tag)]
    except Exception as error:  # protobuf's, tensorboard's own, OSError: of a file that is cut or none at all
        raise SourceError("source.damaged_events", path=path, what=type(error).__name__) from error
    rows: dict[tuple[int, bool], Record] = {}
    for tag, event in found:
        rows.setdefault((int(event.step), bool(TOTAL.match(tag))), {})[tag] = float(event.value)
    records = [canonical({**values, "global_step": float(step)}) for (step, _), values in sorted(rows.items())]
    return Log(records, partial=True)


def newest_events(folder: Path) -> Path | None:
    """The folder of the event file that was written last, in this folder or below `runs`; None without any."""
    files = [*folder.glob(PATTERN), *folder.glob(f"*/{PATTERN}"), *folder.glob(f"runs/*/{PATTERN}")]
    files = [file for file in files if file.is_file()]
    return max(files, key=lambda file: (file.stat().st_mtime, file.name)).parent if files else None
