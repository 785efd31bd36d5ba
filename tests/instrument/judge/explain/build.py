"""Histories made for one rule: what is not given is unknown, as in a log that does not record it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lora_train.instrument.read.history import COLUMNS, PRINTED, History


def history(
    *,
    kind: str = "run",
    evals: Mapping[str, Sequence[float]] | None = None,
    config: dict[str, dict[str, Any]] | None = None,
    finished: bool = True,
    planned: int | None = None,
    coarse: int = 1,
    incidents: list[dict[str, Any]] | None = None,
    **columns: Any,
) -> History:
    """A history of as many steps as the longest column has."""
    n = max(len(np.atleast_1d(values)) for values in columns.values())
    frame = pd.DataFrame(index=range(n), columns=list(COLUMNS), dtype="float64")
    frame["step"] = np.arange(1, n + 1) * coarse
    frame["start"] = 0
    for name, values in columns.items():
        frame[name] = values
    frame = frame.astype("float64")
    frame.attrs[PRINTED] = tuple(columns)
    return History(
        name="runs/x",
        kind=kind,
        steps=frame,
        evals=pd.DataFrame(dict(evals) if evals else {"step": [], "eval_loss": []}),
        config=config or {},
        incidents=incidents or [],
        coarse=coarse,
        finished=finished,
        planned=planned,
    )


def falling(n: int = 100, first: float = 3.0, last: float = 1.5, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """A loss that falls over the whole run, with noise."""
    return np.linspace(first, last, n) + noise * np.random.default_rng(seed).standard_normal(n)


def settling(n: int = 200, first: float = 3.0, last: float = 2.0, noise: float = 0.03, seed: int = 0) -> np.ndarray:
    """A loss that falls in the first fifth and stays."""
    return (
        last
        + (first - last) * np.exp(-np.arange(n) / (n / 25))
        + noise * np.random.default_rng(seed).standard_normal(n)
    )
