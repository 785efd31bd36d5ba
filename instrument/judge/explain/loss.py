"""The training loss: where it went, whether it still moves and why not, and what its log hides."""

from __future__ import annotations

import math

from ...read.history import History
from .finding import WINDOW, Finding, at_end, ends, listed, median, scatter

# A change below this share of the loss is not worth a name: seeds differ by as much.
SMALL = 0.02
# A run that fell by less in all has learned nothing yet; LoRA on a fitting task falls by a tenth and more.
LEARNED = 0.05
# Nats a token. Text has more entropy than this: a loss below it means the rows are known by heart.
BY_HEART = 0.1
# A drop at an epoch's border that is so many times the scatter of medians within the epochs is a stair.
STAIR = 3.0
# The scatter of fewer losses is not known well enough to call a rise.
FEW = 20
# Of the whole fall, hidden before the second line of a log.
HIDDEN = 0.3


def nonfinite(history: History) -> Finding | None:
    """Steps whose loss is not finite: recorded as such, never as 0."""
    if history.stock:
        return None
    import numpy as np

    lost = np.isnan(history.column("loss")) & (history.column("nonfinite_micro_batches") > 0)
    bad = history.column("step")[lost]
    if not len(bad):
        return None
    last = bool(lost[-1])
    values = {"n": len(bad), "steps": listed(bad)}
    return Finding("loss", "wrong" if last else "watch", "explain.loss_nonfinite", values)


def course(history: History) -> Finding | None:
    """Down, flat or up, against the scatter of single steps.

    The medians of k losses differ by 1.25 scatter / sqrt(k) by chance; three times that is a change.
    """
    _, loss = history.finite("loss")
    if len(loss) < 4:
        return Finding("loss", "note", "explain.loss_short", {"n": len(loss)})
    first, last = ends(loss)
    half = len(loss) // 2
    k = at_end(len(loss))
    chance = max(3 * 1.25 * scatter(loss[half:]) / math.sqrt(k), SMALL * abs(first))
    values = {"first": first, "last": last, "lowest": float(loss.min()), "percent": 100 * (first - last) / first}
    values |= {"n": len(loss), "chance": chance}
    if stock_zeros(history):
        return None
    if last < first - chance:
        return Finding("loss", "healthy", "explain.loss_fell", values)
    if len(loss) < FEW:
        return Finding("loss", "note", "explain.loss_unclear", values)
    if last > first + chance:
        return Finding("loss", "wrong", "explain.loss_rose", values)
    return Finding("loss", "watch", "explain.loss_flat", values)


def stock_zeros(history: History) -> list[int]:
    """Rows of a stock log with a loss of exactly 0: the filter's average of nothing (design section 6)."""
    if not history.stock:
        return []
    return [int(step) for step, loss in zip(history.column("step"), history.column("loss"), strict=True) if loss == 0]


def plateau(history: History) -> Finding | None:
    """The second half moved by less than SMALL although the first half fell: and the likeliest reason.

    In this order, for each explains those after it: the rate has run out; the data were not seen once; prompts
    are in the loss, which no adapter learns to predict.
    """
    step, loss = history.finite("loss")
    fell = course(history)
    if len(loss) < 4 * WINDOW or fell is None or fell.key != "explain.loss_fell":
        return None
    half = len(loss) // 2
    first, end = ends(loss[:half])[0], ends(loss)[1]
    middle = median(loss[half : half + WINDOW])
    if first - middle < LEARNED * first or abs(middle - end) > SMALL * middle:
        return None
    since = int(step[half])
    values = {"since": since, "loss": end, "moved": 100 * abs(middle - end) / middle}
    rate = history.column("learning_rate")
    if rate[half] < 0.05 * max(rate.max(), 1e-30):
        return Finding("loss", "note", "explain.plateau_rate", values | {"rate": float(rate[half])})
    epochs = history.epochs
    if epochs is not None and epochs < 1:
        return Finding("loss", "note", "explain.plateau_first_epoch", values | {"share": 100 * epochs})
    if history.setting("data.train_on_inputs"):
        return Finding("loss", "watch", "explain.plateau_prompts", values)
    return None if epochs is None else Finding("loss", "note", "explain.plateau", values | {"epochs": epochs})


def stairs(history: History) -> Finding | None:
    """Drops at the borders of epochs: rows seen again are partly known by heart."""
    import numpy as np

    _, loss = history.finite("loss")
    epoch = history.column("epoch")[np.isfinite(history.column("loss"))]
    if not len(epoch) or not np.isfinite(epoch).all() or epoch[-1] <= 2:  # one drop may be chance
        return None
    whole = np.ceil(epoch - 1e-9)
    drops, noise = [], []
    for border in range(1, int(whole[-1])):
        before, after = loss[whole == border], loss[whole == border + 1]
        n = min(len(before), len(after), WINDOW)
        if n < 4:
            return None
        drops.append(median(before[-n:]) - median(after[:n]))
        within = [median(before[i : i + n]) for i in range(0, len(before) - n + 1, n)]
        noise += list(np.abs(np.diff(within))) or [1.25 * scatter(before) / math.sqrt(n)]
    typical = median(noise)
    if min(drops) <= max(STAIR * typical, SMALL * median(loss)):
        return None
    return Finding("loss", "note", "explain.stairs", {"n": len(drops), "drop": median(drops), "within": typical})


def by_heart(history: History) -> Finding | None:
    """A loss so low that the rows are known by heart; only evaluation tells what else was learned."""
    _, loss = history.finite("loss")
    if len(loss) < WINDOW or stock_zeros(history):
        return None
    first, last = ends(loss)
    if last >= BY_HEART or first < 5 * last:
        return None
    if history.epochs is None:
        return Finding("loss", "watch", "explain.by_heart_sometime", {"last": last})
    return Finding("loss", "watch", "explain.by_heart", {"last": last, "epochs": history.epochs})


def jagged(history: History) -> Finding | None:
    """How far neighbouring steps differ: of the same size throughout, it is the batches and no illness."""
    import numpy as np

    _, loss = history.finite("loss")
    if len(loss) < 2 * WINDOW or history.coarse > 1 or stock_zeros(history):
        return None
    half = len(loss) // 2
    # neighbours differ by sqrt(2) times their scatter, whatever the trend
    early, late = (scatter(np.diff(part)) / math.sqrt(2) / median(part) for part in (loss[:half], loss[half:]))
    if not np.isfinite(early) or late < 0.02:
        return None
    values = {"early": 100 * early, "late": 100 * late, "batch": history.rows_per_step}
    grew = late > 2 * early and late > 0.1
    return Finding("loss", "watch" if grew else "healthy", "explain.jagged_more" if grew else "explain.jagged", values)


def coarse_log(history: History) -> Finding | None:
    """What the interval of a log hides of the early drop."""
    _, loss = history.finite("loss")
    if len(loss) < 4 or stock_zeros(history):
        return None
    if history.kind == "run" and not history.stock:
        every = int(history.number("training.logging_steps") or 0)
        if every < 2 or len(loss) <= every:
            return None
        first, seen = float(loss[0]), float(loss[every - 1])
    else:
        every, first, seen = history.coarse, float(loss[0]), float(loss[1])
        if every < 2:
            return None
    fall = first - ends(loss)[1]
    if fall < LEARNED * first or first - seen < HIDDEN * fall:
        return None
    values = {"every": every, "first": first, "seen": seen, "share": 100 * (first - seen) / fall}
    return Finding("loss", "note", "explain.coarse_stock" if history.stock else "explain.coarse", values)


RULES = (nonfinite, course, plateau, stairs, by_heart, jagged, coarse_log)
