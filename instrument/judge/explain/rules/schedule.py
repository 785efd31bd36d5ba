"""The learning rate's course, and the loss scale's."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....constants import FP16_MAX
from ....read.history import History
from ..finding import Finding, listed

LONG_WARM_UP = 0.3
# LoRA is trained with 1e-5 to 1e-3 by Adam; tiny models bear 1e-2, and plain gradient descent needs more.
FAR_RATE = 0.05
# With Adam a weight moves by about the rate a step. Runs that learn let it go 1e-4 (all weights, preference) to 1e-1
# in all; below this not even float32 weights of 1 would differ in their fifth digit. SEEN steps, for a warm-up is low.
NEAR_NOTHING, SEEN = 1e-5, 20
# A schedule that ends does so near zero.
UNFINISHED = 0.05
FALLING = ("linear", "cosine")
# torch's scale starts at 65536 and finds its place by halving; sixteen halvings are its whole range.
SEARCHING = 16
# Below 128 the smallest gradients of half the layers begin to vanish in fp16.
LOW_SCALE = 128.0
HEADROOM = 0.5
MAX_SAMPLES = 200


def course(history: History) -> Finding | None:
    """Where the rate rose to and where it ended."""
    step, rate = history.finite("learning_rate")
    if not len(rate):
        return None
    peak = int(np.argmax(rate))
    values = {"peak": float(rate[peak]), "step": int(step[peak]), "last": float(rate[-1]), "n": int(step[-1])}
    if values["peak"] > FAR_RATE and "sgd" not in str(history.setting("training.optim", "")):
        return Finding("learning_rate", "watch", "explain.rate_far", values)
    reach = values["n"] * float(np.mean(rate))
    if 0 < reach < NEAR_NOTHING and values["n"] >= SEEN and "sgd" not in str(history.setting("training.optim", "")):
        return Finding("learning_rate", "wrong", "explain.rate_tiny", values | {"reach": reach})
    whole = history.planned or values["n"]
    rising = not history.finished and history.planned is None and peak == len(rate) - 1
    if values["step"] > LONG_WARM_UP * max(whole, values["n"]) and len(rate) >= 20 and not rising:
        values["n"] = max(whole, values["n"])
        return Finding("learning_rate", "watch", "explain.warm_up_long", values)
    return Finding("learning_rate", "healthy", "explain.rate_course", values)


def frozen(history: History) -> Finding | None:
    """A rate that stopped where updates are skipped."""
    step, rate = history.finite("learning_rate")
    if len(rate) < 6 or len(np.unique(rate)) < 3:
        return None
    same = int(np.argmax(rate[::-1] != rate[-1]))
    if same < 3 or rate[-1] < UNFINISHED * rate.max() or not _skips(history, same):
        return None
    values = {"rate": float(rate[-1]), "since": int(step[-same]), "n": same}
    return Finding("learning_rate", "wrong", "explain.rate_frozen", values)


def _skips(history: History, n: int) -> bool:
    """Whether most of the last n rows show something a scaler would skip, from the first on: schedules may be flat."""
    loss, norm, skipped = (history.column(name)[-n:] for name in ("loss", "grad_norm", "skipped"))
    lost = ~np.isfinite(loss) | ~np.isfinite(norm) if np.isfinite(history.column("grad_norm")).any() else loss == 0
    lost = lost | (skipped > 0) | (history.stock & (loss == 0))
    return bool(np.mean(lost) > 0.5 and lost[:3].any())


def unfinished(history: History) -> Finding | None:
    """Skipped steps leave a falling schedule above its end: it counts updates, the run counts steps."""
    steps, updates = history.column("step"), history.column("updates")
    if not history.finished or not np.isfinite(updates[-1:]).all():
        return None
    missed = int(steps[-1] - updates[-1])
    rate = history.column("learning_rate")
    if not missed or str(history.setting("training.lr_scheduler_type", "linear")) not in FALLING:
        return None
    if not rate[-1] > UNFINISHED * np.nanmax(rate):
        return None
    return Finding("learning_rate", "note", "explain.rate_unfinished", {"missed": missed, "rate": float(rate[-1])})


def scale(history: History) -> Finding | None:
    """How the loss scale moved; only runs in fp16 have one that does."""
    values = history.column("loss_scale")
    if not np.isfinite(values).any() or np.nanmax(values) == 1:
        return None
    skipped = history.column("step")[history.column("skipped") > 0]
    facts: dict[str, Any] = {"first": float(values[0]), "last": float(values[-1]), "lowest": float(np.nanmin(values))}
    facts |= {"n": len(skipped), "steps": listed(skipped) if len(skipped) else "-"}
    if facts["lowest"] < LOW_SCALE:
        return Finding("loss_scale", "watch", "explain.scale_low", facts)
    if not len(skipped) and facts["first"] == facts["last"]:
        return Finding("loss_scale", "healthy", "explain.scale_steady", facts)
    if len(skipped) and skipped[-1] > SEARCHING and len(skipped) > SEARCHING:
        return Finding("loss_scale", "watch", "explain.scale_restless", facts)
    return Finding("loss_scale", "healthy", "explain.scale_course", facts)


def headroom(history: History) -> Finding | None:
    """The fp16 output that came nearest to the largest fp16 number."""
    if history.run is None or history.steps.empty:
        return None
    names = {name for name, dtype in history.dtypes.items() if dtype == "float16"}
    if not names:
        return None
    steps = [int(step) for step in history.steps["step"]]
    kept = steps[:: max(1, len(steps) // MAX_SAMPLES)]
    frame = history.stats(r":out$", ["absmax"], kept)
    if frame is None:
        return None
    peaks = frame["absmax"].where(frame["site"].isin(names)).to_numpy("float64")
    if not np.isfinite(peaks).any():
        return None
    top: Any = frame.iloc[int(np.nanargmax(peaks))]
    values = {"site": str(top["site"]), "peak": float(top["absmax"]), "step": int(top["step"]), "limit": FP16_MAX}
    values |= {"percent": 100 * float(top["absmax"]) / FP16_MAX}
    near = values["peak"] > HEADROOM * FP16_MAX
    return Finding(
        "loss_scale", "watch" if near else "healthy", "explain.headroom_small" if near else "explain.headroom", values
    )


RULES = (course, frozen, unfinished, scale, headroom)
