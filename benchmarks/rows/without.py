"""What only the gradient tells: a step without one of its rows, foretold from what the step recorded, by `without` of
instrument/judge/row_noise.py with inner products at every step (instrument.rows_every=1).

|g'| is measured by the step redone at the same weights without the row, |g_r| by the row alone, over the tokens of its
step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lora_train.instrument.judge.row_noise import without
from lora_train.instrument.read.load import load_run
from lora_train.trainer.data.batches import StepRows
from lora_train.trainer.loop.components import Components

from .plant import plant
from .tiny import model_of, squared_norm, trained

ROWS, STEPS, OF, EACH = 16, 90, 480, 12
TIMES, WITHIN = 5.0, 0.05


def measured(folder: Path, seed: int) -> np.ndarray:
    """A line for every row with TIMES its tokens' part of the squares of a step: the square recorded, that of the row
    alone, |g'|^2 foretold and measured; float64 [rows, 4].
    """
    folder.mkdir()
    plant(folder, seed, OF, EACH)
    redone: dict[tuple[int, int], tuple[float, float]] = {}

    def look(components: Components, own: StepRows) -> None:
        n = np.array([example.n_supervised for example in own.examples], "float64")
        alone = (n / n.sum()) ** 2 * [squared_norm(components, [example]) for example in own.examples]
        for at in np.flatnonzero(alone / alone.sum() > 0.9 * TIMES * n / n.sum()):
            rest = [example for place, example in enumerate(own.examples) if place != at]
            redone[own.step, own.examples[at].row] = float(alone[at]), squared_norm(components, rest)

    run = load_run(trained(folder, model_of(folder.parent, seed), ROWS, STEPS, seed, look, rows_every=1))
    norms = run.metrics().set_index("step")["grad_norm"].to_dict()
    found = []
    for step, own in run.rows().groupby("step"):
        squares, along, n = (own[name].to_numpy("float64") for name in ("sumsq", "along", "n_supervised"))
        told = without(norms[step] ** 2, along, squares, n)
        for at in np.flatnonzero(squares / squares.sum() > TIMES * n / n.sum()):
            alone, redo = redone[step, own["row"].iloc[at]]  # pyright: ignore[reportArgumentType]
            found.append((squares[at], alone, told[at], redo))
    return np.array(found).reshape(-1, 4)


def report(found: np.ndarray) -> bool:
    """Prints point, bar and whether it is kept; whether all are."""
    kept = True
    for what, told, true in (("|g_r|^2, recorded", *found.T[:2]), ("|g|^2 without the row, foretold", *found.T[2:])):
        off = np.abs(told / true - 1)
        inside = float(np.mean(off <= WITHIN)) if len(off) else 0.0
        kept &= inside == 1.0
        spread = f"off by {np.median(off):.1%} in the median, {off.max():.1%} at most" if len(off) else "no such row"
        print(
            f"{what:<32} {inside:>5.0%} of {len(off)} rows within {WITHIN:.0%} ({spread}); bar: all  "
            f"{'PASS' if inside == 1.0 else 'SHORT'}"
        )
    return kept
