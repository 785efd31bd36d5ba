"""What is asked of each series: the sentences that would be false, or the one that has to be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
from lora_train.instrument.judge.explain import Finding, History, explain
from lora_train.instrument.judge.explain.rules.rows import decided
from lora_train.instrument.read.eval_rows import EvaluationRows

from . import bounds, draw
from .draw import NOISES, Random

FALSE, FALSE_CORRELATED, FOUND = 1 / 20, 1 / 10, 19 / 20
ROSE = frozenset({"overfitting", "eval_rose", "eval_turned"})
GOES_ON = frozenset({"underfitting", "eval_falling"})
SETTLED = frozenset({"eval_flat", "eval_flat_rate", "eval_level"})
FELL = GOES_ON | SETTLED | {"eval_fell"}
UNMOVED = frozenset({"eval_unmoved"})
EVALUATIONS = (3, 4, 5, 6, 8, 12, 20, 40, 80, 200)
LINES = (50, 200, 1000, 10_000, 50_000)
SHORT = (8, 12, 16, 20, 30, 39)
# A spike is so many times the largest norm to be expected; of more lines than these the best test finds every one.
SPIKE, KNOWN_LINES = 3.0, 200
# d in noise standard deviations and the evaluations it has to be found from
LINE_FROM = ((10.0, 15), (5.0, 30), (3.0, 80), (3.0, 200))
STEP_FROM = ((5.0, 12), (5.0, 20), (5.0, 50), (5.0, 200))


@dataclass(frozen=True)
class Cell:
    """One rate.

    Attributes:
        part, name, n: where it stands in the table; n evaluations or lines.
        make: what is found in a history that a generator draws.
        keys: sentences of which one is counted, without "explain.".
        bar: the most that may be said falsely, or the least that has to be found.
        found: which of the two.
        share: of the seeds; a history of 50,000 lines takes long.
        best: the share that the best test finds, where it is known (bounds.py).
    """

    part: str
    name: str
    n: int
    make: Callable[[Random], list[Finding]]
    keys: frozenset[str]
    bar: float
    found: bool = False
    share: float = field(default=1.0)
    best: Callable[[], float] | None = None


PARTS = ("eval", "rows", "grad_norm", "loss", "memory", "time", "accuracy", "kinds")
Made = Callable[[Random], list[Finding]]


def cells() -> list[Cell]:
    """Every cell of the table."""
    from .kinds import kinds

    return [*evaluations(), *rows(), *grad_norm(), *loss(), *memory(), *time(), *accuracy(), *kinds()]


def explained(make: Callable[[Random], History]) -> Made:
    """What `explain` says of what is made."""
    return lambda random: explain(make(random))


def _evaluated(shape: str, d: float, kind: str, n: int) -> Made:
    def make(random: Random) -> History:
        drawn = draw.correlated(n, random) if kind == "AR 0.5" else draw.noise(kind, n, random)
        loss = draw.losses(draw.level(shape, n, d), drawn, kind)
        return draw.history({"eval_loss": loss}, loss=draw.training_loss(40, random))

    return explained(make)


def evaluations() -> Iterator[Cell]:
    """The evaluation loss."""
    nothing = (
        ("constant", 0.0, ROSE | FELL),
        ("fall to a plateau", 50.0, ROSE | GOES_ON | UNMOVED),
        ("fall all along", 20.0, ROSE | SETTLED | UNMOVED),
    )
    for (shape, d, false), kind, n in product(nothing, NOISES, EVALUATIONS):
        yield Cell("eval", f"{shape}, {kind}", n, _evaluated(shape, d, kind, n), false, FALSE)
    for (shape, d, false), n in product(nothing, (40, 80, 200)):
        yield Cell("eval", f"{shape}, AR 0.5", n, _evaluated(shape, d, "AR 0.5", n), false, FALSE_CORRELATED)
    something = (
        ("step", STEP_FROM, ROSE),
        ("line", LINE_FROM, ROSE),
        ("fall, then line", LINE_FROM, ROSE),
        ("fall to a plateau", LINE_FROM, SETTLED),
        ("fall all along", LINE_FROM, GOES_ON),
        ("last alone", ((10.0, 12), (10.0, 40)), frozenset({"eval_last_rose"})),
    )
    for (shape, sizes, keys), kind in product(something, NOISES):
        for d, n in sizes:
            yield Cell("eval", f"{shape} d={d:g}, {kind}", n, _evaluated(shape, d, kind, n), keys, FOUND, found=True)


def rows() -> Iterator[Cell]:
    """Two evaluations of the same 100 rows, whose losses differ by 60%, and by 10% from one to the other."""

    def made(change: float) -> Made:
        def make(random: Random) -> list[Finding]:
            tokens = random.integers(10, 200, 100).astype(float)
            before = tokens * 1.6 * np.exp(0.6 * random.standard_normal(100))
            after = before * (1 + change + 0.1 * random.standard_t(3, 100))
            history = draw.history(loss=draw.training_loss(40, random))
            rows = np.arange(len(tokens))
            return [decided(history, (20, 40), [EvaluationRows(rows, sums, tokens, rows) for sums in (before, after)])]

        return make

    changed = frozenset({"rows_overfit", "rows_turned", "rows_rose", "rows_fell"})
    yield Cell("rows", "unchanged", 100, made(0.0), changed, FALSE)
    yield Cell("rows", "10% up", 100, made(0.1), changed - {"rows_fell"}, FOUND, found=True)


def _norms(n: int, sigma: float, *, spike: bool) -> Made:
    highest = SPIKE * draw.expected_maximum(n, sigma)

    def make(random: Random) -> History:
        norm = draw.grad_norms(n, sigma, random)
        if spike:
            norm[random.integers(n // 10, n)] = highest
        return draw.history(grad_norm=norm, loss=draw.training_loss(n, random))

    return explained(make)


def grad_norm() -> Iterator[Cell]:
    """Log-normal norms, and one that is three times the largest to be expected."""
    spikes = frozenset({"spikes", "spikes_layer"})
    false = spikes | {"exploding", "vanishing", "gradient_none_since"}
    for sigma, n in product((0.3, 0.6, 0.9), LINES):
        yield Cell("grad_norm", f"log-normal {sigma}", n, _norms(n, sigma, spike=False), false, FALSE, share=_share(n))
        make = _norms(n, sigma, spike=True)
        best = partial(bounds.spike, n, sigma, SPIKE) if n <= KNOWN_LINES else None
        name = f"log-normal {sigma}, spike"
        yield Cell("grad_norm", name, n, make, spikes, FOUND, found=True, share=_share(n), best=best)


def loss() -> Iterator[Cell]:
    """A training loss whose neighbours are correlated."""

    def made(n: int, d: float) -> Made:
        def make(random: Random) -> History:
            return draw.history(loss=1.6 + 0.16 * draw.correlated(n, random) + 0.16 * d * np.linspace(0, 1, n))

        return explained(make)

    rose, fell = frozenset({"loss_rose", "loss_turned", "loss_blew_up"}), frozenset({"loss_fell"})
    flat, little = frozenset({"loss_flat", "loss_little"}), frozenset({"loss_little"})
    for n in (*SHORT, *LINES):
        share = _share(n)
        # neighbours correlated by 0.5: of 50 values there are as many as 17 independent ones
        d = 10 if n <= 50 else 5
        yield Cell("loss", "constant, AR 0.5", n, made(n, 0), rose | fell | little, FALSE, share=share)
        yield Cell("loss", f"falls by {d}, AR 0.5", n, made(n, -d), rose | flat, FALSE, share=share)
        yield Cell("loss", f"falls by {d}, AR 0.5", n, made(n, -d), fell, FOUND, found=True, share=share)
        yield Cell("loss", f"rises by {d}, AR 0.5", n, made(n, d), rose, FOUND, found=True, share=share)


def memory() -> Iterator[Cell]:
    """Memory in an allocator's blocks, and one that grows without end."""
    leaks = frozenset({"memory_grows"})
    for n in LINES:
        share = _share(n)

        def blocks(random: Random, n: int = n) -> History:
            memory = draw.allocated(n, random, int(random.integers(1, 9)), float(random.uniform(0, 0.3)))
            return draw.history(memory_reserved_gib=memory)

        def noisy(random: Random, n: int = n) -> History:
            return draw.history(host_memory_gib=30 * (1 + 0.01 * draw.correlated(n, random)))

        def leaking(random: Random, n: int = n) -> History:
            return draw.history(memory_reserved_gib=draw.leak(n, random, 0.05))

        yield Cell("memory", "blocks of an allocator", n, explained(blocks), leaks, FALSE, share=share)
        yield Cell("memory", "1% of noise, AR 0.5", n, explained(noisy), leaks, FALSE, share=share)
        yield Cell("memory", "grows by 5%", n, explained(leaking), leaks, FOUND, found=True, share=share)


def time() -> Iterator[Cell]:
    """Step times with pauses, and a machine that becomes slower."""
    slower = frozenset({"time_slower", "time_slower_cpu", "time_slower_seconds"})
    for n in LINES:
        share = _share(n)

        def steady(random: Random, n: int = n) -> History:
            return draw.history(step_seconds=draw.step_seconds(n, random), tokens=np.full(n, 1000.0))

        def drifting(random: Random, n: int = n) -> History:
            return draw.history(step_seconds=draw.step_seconds(n, random, 0.2), tokens=np.full(n, 1000.0))

        yield Cell("time", "8% of noise, 1% pauses", n, explained(steady), slower | {"time_faster"}, FALSE, share=share)
        yield Cell("time", "slower by 20%", n, explained(drifting), slower, FOUND, found=True, share=share)


def accuracy() -> Iterator[Cell]:
    """Accuracy counted over rows."""

    def made(n: int, rows: int, first: float, last: float, shape: str) -> Made:
        def make(random: Random) -> History:
            share = last + (first - last) * draw.level(shape, n, 1.0)
            evals = {
                "eval_loss": np.full(n, 0.5),
                "eval_accuracy": random.binomial(rows, share) / rows,
                "eval_runtime": np.full(n, 10.0),
                "eval_samples_per_second": np.full(n, rows / 10),
            }
            return draw.history(evals, loss=draw.training_loss(40, random))

        return explained(make)

    rose, fell = frozenset({"accuracy_rose", "accuracy_rises"}), frozenset({"accuracy_fell"})
    for rows, n in product((200, 2000), EVALUATIONS):
        name = f"constant, {rows} rows"
        yield Cell("accuracy", name, n, made(n, rows, 0.8, 0.8, "constant"), rose | fell, FALSE)
    for rows, n in ((200, 40), (200, 80), (200, 200), (2000, 12), (2000, 20), (2000, 80), (2000, 200)):
        # 15 points are 5 and 17 binomial standard deviations
        up = made(n, rows, 0.65, 0.8, "fall to a plateau")
        yield Cell("accuracy", f"65 to 80%, settles, {rows} rows", n, up, fell | {"accuracy_level"}, FALSE)
        yield Cell("accuracy", f"65 to 80%, settles, {rows} rows", n, up, rose, FOUND, found=True)
        down = made(n, rows, 0.65, 0.8, "step")
        yield Cell("accuracy", f"80 to 65%, {rows} rows", n, down, fell, FOUND, found=True)


def _share(n: int) -> float:
    return 1.0 if n <= 1000 else 0.5 if n <= 10_000 else 0.2
