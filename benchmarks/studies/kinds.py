"""The kinds of study: what is wrong with each, its healthy twin, and the sentence that has to be said of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from lora_train.instrument.advise import Study
from lora_train.instrument.judge.explain import explain

from . import draw
from .draw import RATES, Drawn, Random, grid, with_settings

Make = Callable[[Random, float], Study]
EFFECT, BELOW = 3.0, 0.5
"""In seed standard deviations: what has to be found, and what must not be claimed."""
STEEP = 4.0
"""By how much the rates beside the best one are worse where something else is asked."""


@dataclass(frozen=True)
class Cell:
    """One rate.

    Attributes:
        kind, side: "ill", its "twin", or "below".
        rule: what is asked.
        says: keys of sentences, without "advise.", one of which is right.
        make: draws the study.
        effect: that it is drawn with.
    """

    kind: str
    side: str
    rule: str
    says: tuple[str, ...]
    make: Make
    effect: float


@dataclass(frozen=True)
class Kind:
    """A kind of study and its twin; `below`: whether half an effect can be drawn of it."""

    name: str
    rule: str
    says: tuple[str, ...]
    make: Make
    twin: Make
    twin_says: tuple[str, ...]
    below: bool = True

    def cells(self) -> Iterator[Cell]:
        yield Cell(self.name, "ill", self.rule, self.says, self.make, EFFECT)
        yield Cell(self.name, "twin", self.rule, self.twin_says, self.twin, EFFECT)
        if self.below:
            yield Cell(self.name, "below", self.rule, (), self.make, BELOW)


def _of(trials: Callable[[float], list[Drawn]], **facts) -> Make:
    return lambda random, effect: draw.study(trials(effect), random, **facts)


def _explained(trials: Callable[[float], list[Drawn]], judge: Callable = explain) -> Make:
    return lambda random, effect: draw.study(trials(effect), random, judge)


def _courses(course: Callable[[float], np.ndarray], rates: int = 3, seeds: int = 2, **settings) -> Make:
    """Trials of one level whose course is the same."""

    def make(random: Random, effect: float) -> Study:
        drawn = [replace(one, course=course(effect)) for one in grid((0,) * rates, seeds, values=RATES[:rates])]
        return draw.study(with_settings(drawn, **settings), random)

    return make


def _inside(effect: float, seeds: int = draw.SEEDS) -> list[Drawn]:
    return grid((2 * effect, effect, 0, effect, 2 * effect), seeds)


def _edges() -> Iterator[Kind]:
    inside = _of(_inside)
    steps = np.arange(5.0)
    ranks = (4, 8, 16, 32, 64)
    for name, order in (("edge: the highest rate is best", steps[::-1]), ("edge: the lowest rate is best", steps)):
        make = _of(lambda effect, order=order: grid(tuple(effect * order)))
        yield Kind(name, "P2", ("p2_edge",), make, inside, ("p2_inside",))
    yield Kind(
        "edge: the highest rank is best", "P2", ("p2_edge",),
        _of(lambda effect: grid(tuple(effect * steps[::-1]), key="lora.r", values=ranks)),
        _of(lambda effect: grid(tuple(effect * np.abs(steps - 2)), key="lora.r", values=ranks)), ("p2_inside",),
    )  # fmt: skip
    yield Kind(
        "inside the seed noise", "P14", ("p14_inside",), _of(lambda _: _level(3, draw.SEEDS)),
        _of(lambda effect: grid((effect, 0, effect), values=RATES[1:4])), ("p14_ahead",), below=False,
    )  # fmt: skip
    yield Kind(
        "one of three schedules is better", "P11", ("p11_clear",), _of(_schedules),
        _of(lambda _: _schedules(0)), ("p11_unclear",),
    )  # fmt: skip


def _level(n: int, seeds: int = 2) -> list[Drawn]:
    """Trials of so many rates that are all as good."""
    return grid((0,) * n, seeds, values=RATES[:n])


def _schedules(effect: float) -> list[Drawn]:
    kinds = ("cosine", "linear", "constant")
    return grid((0, effect, effect), key="training.lr_scheduler_type", values=kinds)


def _lengths() -> Iterator[Kind]:
    healthy = _courses(draw.middle)
    yield Kind("too long", "P4", ("p4_long",), _courses(draw.early), healthy, ("p4_inside",))
    yield Kind("too short", "P4", ("p4_short",), _courses(draw.late), healthy, ("p4_inside",))

    def calm(_: float) -> np.ndarray:
        return draw.plateau()

    saturated = _courses(calm, rates=3, seeds=4, lr_scheduler_type="constant")
    yield Kind("compute-bound", "P6", ("p6_bound",), _courses(draw.late), saturated, ("p6_saturated",))
    falling = _courses(draw.late, rates=3, seeds=4)
    yield Kind("not compute-bound: a plateau", "P6", ("p6_saturated",), saturated, falling, ("p6_bound",), below=False)
    cold = _courses(calm, rates=3, seeds=4)
    yield Kind("a cold schedule", "P6", ("p6_saturated_decayed",), cold, saturated, ("p6_saturated",), below=False)
    worse = _courses(draw.rising)
    yield Kind("worse with more steps", "P6", ("p6_rose",), worse, falling, ("p6_bound",))
    unequal = _of(
        lambda _: [replace(one, steps=draw.STEPS if i % 2 else 3 * draw.STEPS // 2) for i, one in enumerate(_level(3))]
    )
    yield Kind("unequal budgets", "P3", ("p3_vary",), unequal, _of(lambda _: _level(3)), ("p3_same",), below=False)
    yield Kind("a choice that does not carry over", "P7", ("p7_lost",), _of(_two_lengths), _of(_carried), ("p7_held",))


def _two_lengths(effect: float) -> list[Drawn]:
    """The lowest rate is best on the short runs, the highest on the long ones."""
    return _rounds((0, effect, 2 * effect), (2 * effect, effect, 0))


def _carried(effect: float) -> list[Drawn]:
    return _rounds((effect, 0, effect), (effect, 0, effect))


def _rounds(short: tuple[float, ...], long: tuple[float, ...]) -> list[Drawn]:
    values = RATES[1:4]
    return [replace(one, steps=draw.STEPS // 2) for one in grid(short, values=values)] + grid(long, values=values)


def _batches() -> Iterator[Kind]:
    key = "per_device_train_batch_size"

    def sized(effects: dict[int, float], values: tuple[float, ...]) -> list[Drawn]:
        found = []
        for size, effect in effects.items():
            curve = (effect + STEEP, effect, effect + STEEP)[: len(values)]
            found += with_settings(grid(curve, values=values), **{key: size})
        return found

    tuned = _of(lambda effect: sized({8: 0, 32: effect}, RATES[1:4]))
    confounded = _of(lambda effect: sized({8: 0, 32: effect}, RATES[2:3]))
    yield Kind("confounded batch", "P9", ("p9_confounded",), confounded, tuned, ("p9_tuned",), below=False)
    alike = _of(lambda _: sized({8: 0, 32: 0}, RATES[1:4]))
    yield Kind("batch sizes that are alike", "P9", ("p9_alike",), alike, tuned, ("p9_tuned",), below=False)
    faster = {8: 1000.0, 16: 1800.0, 32: 1810.0}
    still = {8: 1000.0, 16: 1800.0, 32: 3000.0}

    def speeds(table: dict[int, float]) -> Make:
        return _of(lambda _: [replace(one, settings=((f"training.{key}", size),), speed=speed)
                              for size, speed in table.items() for one in _level(1)[:1]])  # fmt: skip

    yield Kind(
        "a batch that is no faster", "P10", ("p10_size",), speeds(faster), speeds(still), ("p10_edge",), below=False
    )


def _deaths() -> Iterator[Kind]:
    def dying(effects: tuple[float, ...]) -> list[Drawn]:
        trials = grid(effects)
        return [replace(one, death="diverged") if one.rate == RATES[-1] else one for one in trials]

    def one_of(death: str) -> Make:
        return _explained(lambda _: [replace(one, death=death if i == 1 else "") for i, one in enumerate(_level(3))])

    border = _explained(lambda effect: dying((3 * effect, 2 * effect, effect, 0, 0)), draw.suspicious)
    below = _explained(lambda effect: dying((effect, 0, effect, 2 * effect, 0)), draw.suspicious)
    yield Kind("unstable at high rates", "P15", ("p15_border",), border, below, ("p15_above",))
    none, died = _explained(lambda _: _level(3)), ("p15_some", "p15_above")
    yield Kind("diverged trials", "P15", died, one_of("diverged"), none, ("p15_none",), below=False)
    yield Kind("trials that are not finite", "P15", died, one_of("nan"), none, ("p15_none",), below=False)
    spiky = _explained(lambda _: [replace(one, spiky=one.rate > 1e-4) for one in _inside(EFFECT)], draw.suspicious)
    stable = _explained(lambda _: _inside(EFFECT), draw.suspicious)
    yield Kind("unstable at twice the rate", "P16", ("p16_unstable",), spiky, stable, ("p16_stable",), below=False)


def _fitting() -> Iterator[Kind]:
    def constant(halvings: tuple[float, ...]) -> Make:
        """Training losses that fall by so many powers of ten over the run."""

        def trials(_: float) -> list[Drawn]:
            t = np.linspace(0, 1, draw.STEPS)
            curves = [2.0 * 10 ** (-powers * t) for powers in halvings]
            drawn = [replace(one, train=curve) for one, curve in zip(grid((0,) * 5, seeds=1), curves, strict=True)]
            return with_settings(drawn, lr_scheduler_type="constant")

        return _of(trials)

    guess = constant((0.5, 1.5, 3.0, 1.5, 0.5))
    yield Kind(
        "not fitted", "P1", ("p1_not_fitted",), constant((0.2, 0.3, 0.4, 0.3, 0.2)), guess, ("p1_guess",), below=False
    )
    fastest = constant((0.5, 1.0, 1.5, 2.0, 3.0))
    yield Kind("the fastest rate is at the edge", "P1", ("p1_edge",), fastest, guess, ("p1_guess",), below=False)

    def overfit(which: tuple[float, ...]) -> Make:
        def trials(effect: float) -> list[Drawn]:
            rising = draw.middle(2 * effect)
            return [replace(one, course=rising if one.rate in which else None) for one in _inside(effect, 2)]

        return _explained(trials)

    calm = _explained(lambda effect: _inside(effect, 2))
    yield Kind("the best trial overfits", "P19", ("p19_best",), overfit(RATES), calm, ("p19_none",), below=False)
    yield Kind("another trial overfits", "P19", ("p19_some",), overfit(RATES[-1:]), calm, ("p19_none",), below=False)


def _habits() -> Iterator[Kind]:
    level = _of(lambda _: _level(3))
    clipped = _of(lambda _: [replace(one, norms=4.0) for one in _level(3)])
    yield Kind("clipped always", "P17", ("p17_always",), clipped, level, ("p17_fine",), below=False)
    noisy = _of(lambda _: [replace(one, wobble=0.03 * draw.LEVEL) for one in _level(3)])
    yield Kind("noisy evaluation", "P18", ("p18_large",), noisy, level, ("p18_small",), below=False)

    def searched(_: float) -> list[Drawn]:
        betas = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
        more = [(("training.adam_beta1", beta), ("training.adam_epsilon", 10.0**-i)) for i, beta in enumerate(betas)]
        return [replace(one, rate=1e-4 * (i + 1), settings=more[i]) for i, one in enumerate(_level(3))]

    many = _of(searched)
    yield Kind("too many values for so few trials", "P12", ("p12_many",), many, level, ("p12_fits",), below=False)
    rare = _of(lambda _: [replace(one, evaluations=3, course=np.zeros(3)) for one in _level(3)])
    yield Kind("few evaluations", "P20", ("p20_few",), rare, level, ("p20_fine",), below=False)
    small = _of(lambda _: with_settings(_level(3), per_device_eval_batch_size=1))
    yield Kind("evaluation in small batches", "P20", ("p20_batch",), small, level, ("p20_fine",), below=False)
    adaptive = _of(lambda _: _level(3), sampler="tpe")
    yield Kind("drawn by what came out before", "P13", ("p13_adaptive",), adaptive, level, ("p13_grid",), below=False)


def _in_rounds() -> Iterator[Kind]:
    planned = {"steps": draw.STEPS // 2, "rounds": [{"steps": draw.STEPS}]}
    yield Kind(
        "a value that was run for longer", "P11", ("p11_unclear",), _of(lambda _: _longer((0, 0, 0)), **planned),
        _of(lambda effect: _longer((effect, 0, effect)), **planned), ("p11_clear",), below=False,
    )  # fmt: skip


def _longer(effects: tuple[float, ...]) -> list[Drawn]:
    """Three rates in a short round, and the middle one again for longer, where it comes out better."""
    found = [replace(one, steps=draw.STEPS // 2) for one in grid(effects, values=RATES[1:4])]
    return found + grid((effects[1] - 2 * EFFECT,), values=RATES[2:3])


def kinds() -> list[Kind]:
    """Every kind, in the order of the table."""
    return [*_edges(), *_lengths(), *_batches(), *_deaths(), *_fitting(), *_habits(), *_in_rounds()]
