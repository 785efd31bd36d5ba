"""The gradient norm against its own spread in this run, the layers that carry it, and how often clipping bit.

Norms scatter by factors, so they are judged by their logarithms. Of x, n of them, those that stand out are left out of
the mean and the deviation that they are held against:

    t = (x_i - mean) / (s sqrt(1 + 1 / m)),   m norms about it that do not stand out, s their standard deviation

A step is a spike where t is above what the largest of n values of Student's t reaches in one run of 1 / FALSE, and the
norm is SPIKE_FACTOR of the usual one. No test that knows neither mean nor deviation finds a single spike oftener.

Sources: Grubbs (1950); several at once, Rosner (1983); t as a normal deviate, Wallace (1959).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pandas as pd

from ....read.history import PRINTED, TRAINED, History
from ...course import from_table
from ...noise import deviation
from ..finding import WINDOW, Finding, ends, listed, median

# By the least number of norms: of few even the best test there is misses some spikes that are to be found (the bound is
# printed by python -m benchmarks.judging --part grad_norm), of many it finds every one.
FALSE = {0: 0.036, 100: 0.03}
SPIKE_FACTOR = 2.5
# Of a handful of norms that differ by orders of magnitude nothing is unusual, and its exponential is no number.
MOST = 100.0
# Steps on either side whose median is the usual norm: many, as the median of a dozen scatters itself by a third.
WIDEST = 100
# A norm below this is none: bf16 and fp16 gradients that reach an adapter are larger by orders.
NOTHING = 1e-12
# So many overflows among so many lines before the first such norm have halved a loss scale until they round to it.
HALVINGS, LATELY = 6, 300
SPIKES_WATCHED = 0.01
# A loss that is so many times the usual one explains the norm of its step; of so many of the steps.
OWN_LOSS, NEARLY_ALL = 2.0, 0.9
# Over the run's calmest dozen steps. Norms grow twofold in healthy runs as B leaves zero, not tenfold.
EXPLODED = 10.0
# Of the norm after the first dozen steps, while the loss kept more than half of itself.
VANISHED = 1e-3
# One of hundreds of modules with half of the squared norm steers every update.
LOPSIDED = 0.5
CLIPPED_NEARLY_ALWAYS, CLIPPED_RARELY = 0.9, 0.1


def spread(history: History) -> Finding | None:
    """The run's own range: what an unusual value would be here, whatever it is called elsewhere."""
    step, norm = history.finite("grad_norm")
    if len(norm) < 4 or median(norm) <= NOTHING:
        return None
    low, middle, high = (float(np.quantile(norm, q)) for q in (0.05, 0.5, 0.95))
    worst = int(np.argmax(norm))
    values = {"low": low, "median": middle, "high": high, "n": len(norm), "highest": float(norm[worst])}
    values |= {"step": int(step[worst]), "unusual": middle * math.exp(_usual(norm)[1])}
    return Finding("grad_norm", "healthy", "explain.grad_spread", values)


def spikes(history: History) -> Finding | None:
    """Steps far above their neighbours, and the module whose share grew most on the highest of them."""
    step, norm = history.finite("grad_norm")
    if len(norm) < 2 * WINDOW or not (norm > 0).any():
        return None
    at = _spikes(norm)
    if not len(at):
        return None
    highest = int(at[np.argmax(norm[at])])
    values = {"n": len(at), "steps": listed(step[at]), "step": int(step[highest]), "norm": float(norm[highest])}
    values |= {"median": median(norm), "module": "-", "share": 0.0, "usual": 0.0}
    verdict = "watch" if len(at) > max(3, SPIKES_WATCHED * len(norm)) else "note"
    if verdict == "watch" and _with_their_loss(history, step[at]):
        return Finding("grad_norm", "note", "explain.spikes_rows", values)
    layers = history.layers
    if layers is None or (own := _at(layers, int(step[highest]), history)) is None:
        return Finding("grad_norm", verdict, "explain.spikes", values)
    shares = layers.pow(2).div(layers.pow(2).sum(axis=1), axis=0).median()
    square = own.to_numpy("float64") ** 2
    share, usual = square / square.sum(), shares.to_numpy("float64")
    most = int(np.nanargmax(share - usual))
    values |= {
        "module": str(layers.columns[most]),
        "share": 100 * float(share[most]),
        "usual": 100 * float(usual[most]),
    }
    return Finding("grad_norm", verdict, "explain.spikes_layer", values)


def _with_their_loss(history: History, spiked: np.ndarray) -> bool:
    """Whether the losses of nearly all those steps stand out as well, and the run fell all the same."""
    step, loss = history.finite("loss")
    if history.coarse > 1 or len(loss) < 2 * WINDOW or not (loss > 0).all():
        return False
    first, last = ends(loss)
    out = np.isin(spiked, step[_usual(loss)[0] > math.log(OWN_LOSS)])
    return bool(out.mean() >= NEARLY_ALL and last < first)


def _at(layers, step: int, history: History):
    """The norms of a step that may not be among the sampled."""
    if step in layers.index:
        return layers.loc[step]
    frame = history.stats(TRAINED, ["norm"], step)
    if frame is None:
        return None
    squares = (frame["norm"] ** 2).groupby(frame["site"].astype(str).str.rpartition(":")[0]).sum()
    return np.sqrt(squares.reindex(layers.columns))


def _spikes(norm: np.ndarray) -> np.ndarray:
    """Positions; each is held against those before and after it."""
    above, limit = _usual(norm)
    return np.flatnonzero(above > limit)


def _usual(norm: np.ndarray) -> tuple[np.ndarray, float]:
    """How far each logarithm is above those around it, and from where on that is unusual in a run of this length."""
    logs = np.log(np.maximum(norm, 1e-30))
    n = len(logs)
    width = 2 * min(max(n // 2, WINDOW), WIDEST) + 1
    likely = NormalDist().inv_cdf((1 - from_table(FALSE, n)) ** (1 / n))
    beside = pd.Series(logs).rolling(width, center=True, min_periods=1).median().to_numpy("float64")
    out = logs - beside > deviation(logs - beside) * likely
    out[np.argmax(logs - beside)] = True
    near = pd.Series(logs).where(~out).rolling(width, center=True, min_periods=1)
    mean, m = near.mean().to_numpy("float64"), near.count().to_numpy("float64")
    above = np.where(m > 0, logs - mean, logs - beside)
    free = max(n - int(out.sum()) - 1, 1)
    sigma = math.sqrt(float(np.sum(above[~out] ** 2)) / free)
    # the normal deviate of Student's t, the other way round
    t = math.sqrt(free * math.expm1((likely * (8 * free + 3) / (8 * free + 1)) ** 2 / free))
    return above / np.sqrt(1 + 1 / np.maximum(m, 1)), max(min(t * sigma, MOST), math.log(SPIKE_FACTOR))


def never_finite(history: History) -> Finding | None:
    """Every norm is NaN or inf while the losses are finite: only the backward pass overflows, from the first step on.

    A log without the column has no value there either: the reader says in `attrs` whether it was printed.
    """
    norm, loss = history.column("grad_norm"), history.column("loss")
    if (
        np.isfinite(norm).any()
        or not np.isfinite(loss).any()
        or "grad_norm" not in history.steps.attrs.get(PRINTED, ())
    ):
        return None
    values = {"n": len(norm), "loss": float(loss[np.isfinite(loss)][-1])}
    return Finding("grad_norm", "wrong", "explain.gradient_never_finite", values)


def none_since(history: History) -> Finding | None:
    """Norms of 0 to the end: from there on nothing was learned, whatever the learning rate.

    Where the backward pass often overflowed before, a loss scaler was there (without one the loss would not have stayed
    finite) and has halved its scale until gradients round to 0.
    """
    step, norm = history.finite("grad_norm")
    loss = history.column("loss")
    zero = norm <= NOTHING
    if len(norm) < 4 or not zero[-3:].all() or not (np.abs(loss[-3:]) > 0).any():
        return None
    since = int(len(zero) - np.argmax(~zero[::-1])) if not zero.all() else 0
    if history.stock and not (~zero[step > 1]).any():  # stock.py says so of a log
        return None
    values = {"step": int(step[since]), "n": len(norm) - since, "loss": float(loss[np.isfinite(loss)][-1])}
    norms, steps = history.column("grad_norm"), history.column("step")
    overflowed = steps[np.isfinite(loss) & (loss != 0) & ~np.isfinite(norms) & (steps < step[since])]
    lately = overflowed[overflowed >= step[since] - LATELY * history.coarse]
    if len(lately) >= HALVINGS:
        return Finding("grad_norm", "wrong", "explain.gradient_none_scale", values | {"n_bad": len(overflowed)})
    return Finding("grad_norm", "wrong", "explain.gradient_none_since", values)


def exploding(history: History) -> Finding | None:
    """The last dozen norms against the calmest dozen before."""
    step, norm = history.finite("grad_norm")
    if len(norm) < 3 * WINDOW:
        return None
    medians = [median(norm[i : i + WINDOW]) for i in range(0, len(norm) - WINDOW + 1, WINDOW)]
    last = median(norm[-WINDOW:])
    calm = int(np.argmin(medians))
    if medians[calm] <= 0 or last < EXPLODED * medians[calm] or not _loss_rose(history):
        return None
    values = {"last": last, "calm": medians[calm], "step": int(step[calm * WINDOW]), "factor": last / medians[calm]}
    return Finding("grad_norm", "wrong", "explain.exploding", values)


def _loss_rose(history: History) -> bool:
    """Without it, a growing norm is a model that became sure of itself."""
    _, loss = history.finite("loss")
    best = min(median(loss[i : i + WINDOW]) for i in range(0, max(1, len(loss) - WINDOW + 1), WINDOW))
    return median(loss[-WINDOW:]) > 1.05 * best


def vanishing(history: History) -> Finding | None:
    """Norms that all but ended while the loss did not."""
    step, norm = history.finite("grad_norm")
    _, loss = history.finite("loss")
    if len(norm) < 3 * WINDOW or len(loss) < 3 * WINDOW:
        return None
    early, last = median(norm[1 : 1 + WINDOW]), median(norm[-WINDOW:])
    if last >= VANISHED * early or median(loss[-WINDOW:]) < 0.5 * median(loss[:WINDOW]):
        return None
    return Finding("grad_norm", "wrong", "explain.vanishing", {"early": early, "last": last, "step": int(step[-1])})


def clipping(history: History) -> Finding | None:
    """How often max_grad_norm shortened the gradient: nearly always, it decides the step's length."""
    limit = history.number("training.max_grad_norm")
    _, norm = history.finite("grad_norm")
    if not limit or not len(norm):
        return None
    share = float((norm > limit).mean())
    always, rarely = share >= CLIPPED_NEARLY_ALWAYS, share <= CLIPPED_RARELY
    key = "explain.clipped_always" if always else "explain.clipped_rarely" if rarely else "explain.clipped_often"
    values = {"limit": float(limit), "percent": 100 * share, "n": int((norm > limit).sum()), "median": median(norm)}
    return Finding("grad_norm", "note" if always else "healthy", key, values)


def layers(history: History) -> Finding | None:
    """The modules with the largest share of the squared norm."""
    norms = history.layers
    if norms is None or norms.shape[1] < 2:
        return None
    squares = norms.iloc[1:].pow(2) if len(norms) > 1 else norms.pow(2)
    shares = squares.div(squares.sum(axis=1), axis=0).median().dropna().sort_values(ascending=False)
    if shares.empty:
        return None
    top = ", ".join(f"{name} {share:.0%}" for name, share in shares.head(3).items())
    values = {"top": top, "n": len(shares), "module": str(shares.index[0]), "percent": 100 * float(shares.iloc[0])}
    if shares.iloc[0] > LOPSIDED and len(shares) > 4:
        key = "explain.layers_lopsided_weights" if history.trains_weights else "explain.layers_lopsided"
        return Finding("grad_norm", "watch", key, values)
    return Finding("grad_norm", "healthy", "explain.layers", values)


def unmoved_layers(history: History) -> Finding | None:
    """Modules whose gradient was exactly 0 at every step after the first: nothing reaches them."""
    norms = history.layers
    if norms is None or len(norms) < 3:
        return None
    dead = [str(name) for name in norms.columns if (norms[name].iloc[1:] == 0).all()]
    if not dead:
        return None
    values = {"n": len(dead), "of": norms.shape[1], "module": dead[0]}
    if history.trains_weights:  # models have parts that a task does not use: a pooler, a second head
        return Finding("grad_norm", "note", "explain.layers_unused", values)
    return Finding("grad_norm", "wrong", "explain.layers_dead", values)


def above_one(history: History) -> Finding | None:
    """Popular advice that the run contradicts: a norm above 1 is bad."""
    _, norm = history.finite("grad_norm")
    _, loss = history.finite("loss")
    if len(loss) < 2 * WINDOW or len(norm) < WINDOW or median(norm) <= 1.0:
        return None
    first, last = ends(loss)
    if last > 0.95 * first or last == 0:
        return None
    return Finding("grad_norm", "note", "explain.above_one", {"median": median(norm), "first": first, "last": last})


RULES = (never_finite, none_since, spread, spikes, exploding, vanishing, clipping, layers, unmoved_layers, above_one)
