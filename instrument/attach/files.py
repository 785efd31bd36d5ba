"""The folder of a run that is only watched: a disk that fills ends the recording, and not the training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..messages import say
from ..read.files import write_text
from ..read.store import METRICS, MetricsLog, Site, StatsWriter, write_sites
from ..record.capsule import incident_folder, write_diagnosis


class RunFiles:
    """metrics.jsonl, sites.json, stats/ and incidents/. What the disk refuses is said once; then nothing is written.

    Attributes:
        folder: the run's.
    """

    def __init__(
        self, wanted: Path, sites: Sequence[Site], texts: Mapping[str, str], warn: Callable[[str], None] = print
    ):
        """
        Args:
            wanted: a new folder; if it holds a run, `<wanted>-2` and so on is taken.
            texts: further files, by name.
            warn: takes a sentence for the user.

        Raises:
            OSError: the folder cannot be made.
        """
        self.folder, self._warn, self._ended = _free_folder(wanted), warn, False
        write_sites(self.folder, sites)
        for name, text in texts.items():
            write_text(self.folder / name, text)
        self._metrics, self._stats = MetricsLog(self.folder, 0), StatsWriter(self.folder, 0, len(sites))

    def line(self, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self._try(self._metrics.write, dict(values))

    def statistics(self, step: int, rows: torch.Tensor, exponents: torch.Tensor | None) -> None:
        """Rows of a step, as the recorder hands them out."""
        self._try(self._stats.write, step, rows.numpy(), None if exponents is None else exponents.long().numpy())

    def diagnosis(self, step: int, values: Mapping[str, Any]) -> None:
        """diagnosis.json of an incident."""
        self._try(lambda: write_diagnosis(incident_folder(self.folder, step, 0), values))

    def close(self) -> None:
        """Syncs to disk and closes."""
        self._try(self._metrics.close)
        self._try(self._stats.close)
        self._ended = True

    def _try(self, write: Callable[..., None], *values: Any) -> None:
        if self._ended:
            return
        try:
            write(*values)
        except OSError as error:
            self._ended = True
            self._stats.abandon()
            with contextlib.suppress(OSError):
                self._metrics.close()
            self._warn(say("attach.broke_off", run=self.folder, what=f"{type(error).__name__}: {error}"))


def _free_folder(wanted: Path) -> Path:
    """`wanted`, or the first `wanted-2`, ... that holds no run; made."""
    folder, number = wanted, 1
    while (folder / METRICS).exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
