"""Rates of what single kinds of training are asked, and of sentences on a schedule: each seed draws its own sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from lora_train.instrument.judge.explain import History

from . import draw
from .cells import FALSE, FOUND, Cell, explained
from .draw import Random

Make = Callable[[Random], History]
LINES = (50, 200, 1000)
ROSE = frozenset({"overfitting", "eval_rose", "eval_turned"})


def kinds() -> Iterator[Cell]:
    """Every cell of the part, two of a sentence: where it would be false, and where it has to be there."""
    for n in LINES:
        yield from _pair("spikes of rows", n, "spikes_rows", _spikes(n, 1.0), _spikes(n, 4.0))
        yield from _pair(
            "micro-batches added up", n, "added_up", _classifier(n, added=False), _classifier(n, added=True)
        )
        yield from _pair("loss beyond guessing", n, "loss_beyond", _rate(n, 1e-5, 1e-2), _beyond(n))
        yield from _pair("rate of nothing", n, "rate_tiny", _rate(n, 1e-5, 1e-2), _tiny(n))
        yield from _pair("rate cut too early", n, "plateau_dropped", _cut(n, late=True), _cut(n, late=False))
        yield from _pair("pairs learned", n, "pairs_learned", _pairs(n, 0.5), _pairs(n, 0.8))
        yield from _pair("pairs a toss", n, "pairs_toss", _pairs(n, 0.8), _pairs(n, 0.5))
        d = 5.0 if n < 80 else 3.0  # as of a line of evaluations
        yield from _pair("PPO score rises", n, "ppo_rose", _ppo(n, 0.0), _ppo(n, d))
        yield from _pair("PPO score falls", n, "ppo_fell", _ppo(n, 0.0), _ppo(n, -d))
        yield from _pair("PPO pays in KL", n, "ppo_penalty", _ppo(n, d), _ppo(n, d, kl=2 * d))
        yield from _pair("PPO moves too far", n, "ppo_ratio", _update(n, ratio=1.0), _update(n, ratio=2.6))
        yield from _pair("PPO clips too much", n, "ppo_clipped", _update(n, clipped=0.15), _update(n, clipped=0.5))
        yield from _pair("PPO says one thing", n, "ppo_entropy", _update(n, entropy=0.6), _update(n, entropy=0.04))
        yield from _pair("PPO below zero KL", n, "ppo_kl_negative", _ppo(n, 0.0), _ppo(n, 0.0, kl=-3.0))
    for n in (12, 40, 80):
        yield Cell("kinds", "a rise that came back", n, explained(_hump(n)), ROSE, FALSE)
        yield from _pair("the metric chooses", n, "choice_metric", _chosen(n, "loss"), _chosen(n, "accuracy"))
        yield from _pair("too early to judge", n, "loss_early", _begun(n, 10.0), _begun(n, 0.0))


def _pair(name: str, n: int, key: str, without: Make, with_it: Make) -> Iterator[Cell]:
    keys = frozenset({key})
    yield Cell("kinds", name, n, explained(without), keys, FALSE)
    yield Cell("kinds", name, n, explained(with_it), keys, FOUND, found=True)


def _between(random: Random, low: float, high: float) -> float:
    """Evenly in the logarithm."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def _of(history: History, task: str, kind: str = "trainer") -> History:
    history.task, history.kind = task, kind
    history.task_known = True
    return history


def _spikes(n: int, factor: float) -> Make:
    """Norms that stand out at one step in twelve, whose loss is `factor` of the usual one."""

    def make(random: Random) -> History:
        norm, loss = draw.grad_norms(n, 0.3, random), draw.training_loss(n, random)
        at = random.choice(np.arange(2, n), max(4, n // 12), replace=False)
        norm[at] *= random.uniform(8, 30, len(at))
        loss[at] *= factor
        return draw.history(grad_norm=norm, loss=loss)

    return make


def _classifier(n: int, *, added: bool) -> Make:
    def make(random: Random) -> History:
        k = int(random.integers(2, 17)) if added else 1
        evals = 0.7 - random.uniform(0.1, 0.5) * np.linspace(0.1, 1, 6)
        # the training loss is of other rows: it differs by up to a third where nothing was added up
        level = np.interp(np.arange(n), np.linspace(n / 6, n, 6), evals) * (1 if added else random.uniform(0.67, 1.33))
        loss = k * level * np.exp(0.1 * random.standard_normal(n))
        return _of(draw.history({"eval_loss": evals}, loss=loss), "seq_cls")

    return make


def _rate(n: int, low: float, high: float) -> Make:
    """A run that learns with a rate from anywhere between the two; its first loss is that of guessing at most."""

    def make(random: Random) -> History:
        rate = np.linspace(_between(random, low, high), 0, n)
        return draw.history(loss=draw.training_loss(n, random, random.uniform(2.0, 12.0)), learning_rate=rate)

    return make


def _beyond(n: int) -> Make:
    def make(random: Random) -> History:
        loss = _between(random, 20, 500) * np.exp(0.1 * random.standard_normal(n))
        loss[0] = random.uniform(2, 12)
        return draw.history(loss=loss, learning_rate=np.full(n, _between(random, 0.06, 10)))

    return make


def _tiny(n: int) -> Make:
    def make(random: Random) -> History:
        loss = random.uniform(0.5, 4) * (1 + 0.1 * random.standard_normal(n))
        return draw.history(loss=loss, learning_rate=np.full(n, _between(random, 1e-5, 9e-1) * 1e-5 / n))

    return make


def _cut(n: int, *, late: bool) -> Make:
    """A rate that falls to a tenth at once: while the loss falls, which then stays, or long after it has settled."""

    def make(random: Random) -> History:
        at = int(n * random.uniform(0.36, 0.45)) if n > 50 else 24
        fell = at * (random.uniform(0.2, 0.4) if late else 1.0)
        level = 1.5 + random.uniform(0.8, 2.0) * np.maximum(1 - np.arange(n) / fell, 0)
        rate = np.where(np.arange(n) < at, 1e-4, 1e-4 * random.uniform(0.12, 0.5))
        loss = level + 0.02 * random.standard_normal(n)
        return draw.history(loss=loss, learning_rate=rate, epoch=np.linspace(0, 3, n))

    return make


def _pairs(n: int, last: float) -> Make:
    """Pairs ranked right, of 64 a line."""

    def make(random: Random) -> History:
        share = np.clip(np.linspace(0.5, last + (last - 0.5) * random.uniform(-0.1, 0.3), n), 0, 0.97)
        made = draw.history(loss=draw.training_loss(n, random, 0.69, 0.5))
        made.steps["rewards/accuracies"] = random.binomial(64, share) / 64
        return _of(made, "preference")

    return make


def _ppo(n: int, change: float, kl: float | None = None) -> Make:
    """Scores that change by so many times their scatter from line to line, and a distance from the reference model."""

    def make(random: Random) -> History:
        t, scatter = np.linspace(0, 1, n), _between(random, 0.1, 3)
        score = random.normal() + scatter * (change * t + random.standard_normal(n))
        away = (random.uniform(0.2, 1.0) if kl is None else kl) * t * (1 if kl is None or kl < 0 else scatter)
        made = draw.history(learning_rate=3e-6 * (1 - t) + 1e-9)
        made.steps["objective/scores"] = score
        made.steps["objective/kl"] = away + 0.1 * random.standard_normal(n)
        made.steps["objective/rlhf_reward"] = score - (1.0 if kl is not None else 0.05) * away
        made.steps.attrs["printed"] = ("learning_rate",)
        return _of(made, "ppo")

    return make


def _update(n: int, ratio: float = 1.0, clipped: float = 0.1, entropy: float = 0.8) -> Make:
    """Updates that end at this ratio of the policies, this share clipped, this share of the first entropy."""

    def make(random: Random) -> History:
        t = np.linspace(0, 1, n)
        made = draw.history(learning_rate=3e-6 * (1 - t) + 1e-9)
        end = np.log(ratio) * random.choice([-1, 1]) * random.uniform(1.0, 2.0)
        made.steps["val/ratio"] = np.exp(end * np.sqrt(t) + 0.05 * random.standard_normal(n))
        share = clipped * random.uniform(0.9, 1.1)
        made.steps["policy/clipfrac_avg"] = random.binomial(200, share, n) / 200
        level = random.uniform(5, 200) * (1 - (1 - entropy) * np.minimum(1.5 * t, 1))
        made.steps["objective/entropy"] = level * np.exp(0.1 * random.standard_normal(n))
        made.steps.attrs["printed"] = ("learning_rate",)
        return _of(made, "ppo")

    return make


def _chosen(n: int, by: str) -> Make:
    """A loss that turns half-way while the accuracy, counted over 500 rows, goes on rising; either may choose."""

    def make(random: Random) -> History:
        t, level = np.linspace(0, 1, n), draw.level("fall, then line", n, random.uniform(15, 30))
        evals = {
            "eval_loss": draw.losses(level, random.standard_normal(n), "Gaussian"),
            "eval_accuracy": random.binomial(500, random.uniform(0.6, 0.7) + random.uniform(0.12, 0.2) * t) / 500,
            "eval_runtime": np.full(n, 10.0),
            "eval_samples_per_second": np.full(n, 50.0),
        }
        config = {"training": {"metric_for_best_model": by}}
        return _of(draw.history(evals, config, loss=draw.training_loss(40, random)), "seq_cls")

    return make


def _begun(n: int, d: float) -> Make:
    """A run that was stopped after n of its steps, up to 20 times as many; its loss fell by d times its noise."""

    def make(random: Random) -> History:
        fell = 0.1 * (draw.correlated(n, random) - d * np.linspace(0, 1, n))
        made = draw.history(loss=random.uniform(1, 4) * (1.2 + fell))
        made.finished, made.planned = False, int(random.integers(n + 1, 20 * n))
        return made

    return make


def _hump(n: int) -> Make:
    """An evaluation loss that is 5 to 15 of its wobble higher for a while and then as low as before."""

    def make(random: Random) -> History:
        start, length = random.uniform(0.2, 0.45), random.uniform(0.15, 0.25)
        t = np.linspace(0, 1, n)
        levels = random.uniform(5, 15) * ((t >= start) & (t < start + length))
        loss = draw.losses(levels, random.standard_normal(n), "Gaussian")
        return draw.history({"eval_loss": loss}, loss=draw.training_loss(40, random))

    return make
