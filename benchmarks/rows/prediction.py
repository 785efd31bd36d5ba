"""The norm of another batch, foretold from steps of 4 rows and then measured at the same weights.

A run of 4 rows a step ends with WINDOW steps at a learning rate of 0; their rows foretell |g|^2 of 8, 16 and 32 rows
with a 90% interval, as `explain` does. Before its last step 30 batches or more of each size are drawn from its rows and
run at the weights of then, without dropout; the mean of their |g|^2 is what is held against the interval.
"""

from __future__ import annotations

import random
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from lora_train.instrument.judge.row_noise import RowNoise, row_noise
from lora_train.instrument.read.load import load_run
from lora_train.trainer.data.batches import StepRows
from lora_train.trainer.loop.components import Components

from .plant import plant
from .tiny import model_of, squared_norm, trained

ROWS, SIZES, STEPS, WINDOW, OF = 4, (8, 16, 32), 120, 90, 600
# Rows that are measured of each size: 120, 60 and 30 batches.
CASES, MEASURED, MODELS = 30, 960, 3
CONFIDENCE, INSIDE, HALF_WIDTH = 0.90, 0.80, 0.25


def foretold(noise: RowNoise, rows: int) -> tuple[float, float]:
    """|g|^2 of so many rows a step, and half of its interval's width."""
    squares = noise.row / rows + (1 - 1 / rows) * noise.shared
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return float(squares.mean()), float(z * squares.std(ddof=1) / np.sqrt(len(squares)))


def case(folder: Path, seed: int) -> np.ndarray:
    """Foretold, half-width and measured of each size, float64 [sizes, 3]."""
    folder.mkdir()
    plant(folder, seed, OF, 0)
    means: list[float] = []

    def look(components: Components, own: StepRows) -> None:
        if own.step == STEPS - WINDOW + 1:
            components.optimizer.follow([0.0] * (STEPS + 1))
        if own.step == STEPS:
            draw, examples = random.Random(seed), components.plan.dataset.examples
            for size in SIZES:
                batches = [draw.sample(list(examples), size) for _ in range(MEASURED // size)]
                means.append(float(np.mean([squared_norm(components, batch) for batch in batches])))

    run = load_run(trained(folder, model_of(folder.parent, seed % MODELS), ROWS, STEPS, seed, look))
    frame = run.rows()
    norms: pd.Series = run.metrics().set_index("step")["grad_norm"]
    noise = row_noise(frame.query(f"step > {STEPS - WINDOW}"), norms)
    assert noise is not None
    return np.array([(*foretold(noise, size), true) for size, true in zip(SIZES, means, strict=True)])


def report(cases: np.ndarray) -> bool:
    """Prints point, bar and whether it is kept, of cases [cases, sizes, 3]; whether all are."""
    kept = True
    for at, size in enumerate(SIZES):
        told, half, true = cases[:, at].T
        inside, width = float(np.mean(np.abs(true - told) <= half)), float(np.median(half / told))
        kept &= (own := inside >= INSIDE and width <= HALF_WIDTH)
        print(
            f"|g|^2 of {size:>2} rows from {ROWS}: inside the {CONFIDENCE:.0%} interval in {inside:.0%} of {len(told)} "
            f"cases (bar {INSIDE:.0%}), half-width {width:.1%} in the median (bar {HALF_WIDTH:.0%}), "
            f"measured / foretold {np.median(true / told):.3f}  {'PASS' if own else 'SHORT'}"
        )
    return kept
