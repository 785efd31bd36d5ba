"""Noise, shapes and histories that are drawn: a level m and noise of standard deviation 1 about it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from lora_train.instrument.read.history import COLUMNS, History

Random = np.random.Generator
NOISES = ("Gaussian", "Student t3", "5% outliers", "2 decimals", "4 decimals")
LEVEL, RELATIVE = 1.6, 0.01
"""Of an evaluation loss, in nats a token, and the noise about it as a share of it."""


def noise(kind: str, n: int, random: Random) -> np.ndarray:
    """(n,) of standard deviation 1; of the outliers' 5% are eight times as wide as the rest, whose own is then 0.49."""
    if kind == "Student t3":
        return random.standard_t(3, n) / np.sqrt(3)
    drawn = random.standard_normal(n)
    if kind == "5% outliers":
        drawn = np.where(random.random(n) < 0.05, 8 * drawn, drawn) / np.sqrt(0.95 + 0.05 * 64)
    return drawn


def correlated(n: int, random: Random, rho: float = 0.5) -> np.ndarray:
    """(n,) of standard deviation 1, neighbours correlated by rho."""
    drawn = random.standard_normal(n)
    drawn[1:] *= np.sqrt(1 - rho**2)
    for i in range(1, n):
        drawn[i] += rho * drawn[i - 1]
    return drawn


def level(shape: str, n: int, d: float = 0.0) -> np.ndarray:
    """(n,), in standard deviations of the noise: a change of d; a fall that leads up to a rise is one of 20."""
    t = np.linspace(0, 1, n)
    half = np.maximum(2 * t - 1, 0)
    return {
        "constant": np.zeros(n),
        "fall to a plateau": d * np.exp(-10 * t),
        "fall all along": d * (1 - t),
        "step": np.where(np.arange(n) >= n // 2, d, 0.0),
        "line": d * half,
        "fall, then line": 20 * np.exp(-10 * t) + d * half,
        "last alone": np.where(np.arange(n) == n - 1, d, 0.0),
    }[shape]


def losses(levels: np.ndarray, drawn: np.ndarray, kind: str) -> np.ndarray:
    """An evaluation loss as it is printed."""
    loss = LEVEL * (1 + RELATIVE * (levels + drawn))
    return np.round(loss, {"2 decimals": 2, "4 decimals": 4}.get(kind, 12))


def history(
    evals: Mapping[str, np.ndarray] | None = None,
    config: dict[str, dict[str, Any]] | None = None,
    **columns: np.ndarray,
) -> History:
    """A finished run of lora-train with these columns; evaluations are spread over its steps."""
    n = max(len(values) for values in columns.values())
    frame = pd.DataFrame(np.nan, index=range(n), columns=list(COLUMNS))
    frame["step"], frame["start"] = np.arange(1.0, n + 1), 0.0
    for name, values in columns.items():
        frame[name] = values
    table: dict[str, Any] = dict(evals or {"eval_loss": np.zeros(0)})
    rows = len(next(iter(table.values())))
    table["step"] = np.ceil(np.linspace(n / max(rows, 1), n, rows))
    return History("drawn", "run", frame, pd.DataFrame(table, dtype="float64"), config or {}, finished=True)


def training_loss(n: int, random: Random, first: float = 2.0, last: float = 1.0) -> np.ndarray:
    """(n,), falling throughout: what stands beside the column that is judged."""
    return np.linspace(first, last, n) + 0.05 * random.standard_normal(n)


def grad_norms(n: int, sigma: float, random: Random) -> np.ndarray:
    """(n,) log-normal about 1."""
    return np.exp(sigma * random.standard_normal(n))


@lru_cache(maxsize=64)
def expected_maximum(n: int, sigma: float) -> float:
    """Of n log-normal norms: the mean of their largest, by quadrature over its distribution."""
    from statistics import NormalDist

    u = (np.arange(2000) + 0.5) / 2000
    z = np.array([NormalDist().inv_cdf(float(p)) for p in u ** (1 / n)])
    return float(np.mean(np.exp(sigma * z)))


def allocated(n: int, random: Random, blocks: int, growth: float) -> np.ndarray:
    """(n,) GiB of a caching allocator: so many blocks, ever rarer, that together are so large a share."""
    at = np.sort((n * random.random(blocks) ** 3).astype(int))
    sizes = random.random(blocks) + 0.2
    memory = np.zeros(n)
    np.add.at(memory, at, growth * sizes / sizes.sum())
    return 30 * (1 + memory.cumsum())


def leak(n: int, random: Random, growth: float) -> np.ndarray:
    """(n,) GiB: growth at an even rate, seen in blocks of 20 MiB, with 0.1% of noise."""
    grown = 30 * (1 + growth * np.linspace(0, 1, n))
    return np.floor(grown * 51.2) / 51.2 + 0.03 * random.standard_normal(n)


def step_seconds(n: int, random: Random, slower: float = 0.0) -> np.ndarray:
    """(n,) s: 8% of noise, one step in a hundred a pause of up to ten times, slower towards the end by a share."""
    seconds = np.exp(0.08 * random.standard_normal(n)) * (1 + slower * np.linspace(0, 1, n))
    return np.where(random.random(n) < 0.01, seconds * random.uniform(2, 10, n), seconds)
