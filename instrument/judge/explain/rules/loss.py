"""The training loss: where it went, whether it still moves and why not, and what its log hides."""

from __future__ import annotations

import math

import numpy as np

from ....read.history import History
from ....read.logs.marks import NO_LOSS, OTHER
from ...course import STAYS as FEW
from ...course import Course, judge
from ..finding import WINDOW, Finding, at_end, ends, listed, median, scatter
from .evaluation import SPENT, evaluations
from .rows import is_same_file, overlap_of
from .schedule import FAR_RATE

# A change below this share of the loss is not worth a name: seeds differ by as much.
SMALL = 0.02
# A run that fell by less in all has learned nothing yet; LoRA on a fitting task falls by a tenth and more.
LEARNED = 0.05
# Nats a token. Text has more entropy than this: a loss below it means the rows are known by heart.
BY_HEART = 0.1
# Nats a token of a language model that has not seen the rows; what begins lower may be a loss of another kind.
UNTRAINED = 0.5
# What a schedule of steps takes away of a rate at once.
DROP = 0.6
# An adapter begins at 0 and moves little in so many updates.
EARLY = 100
# So many times what chance does (two standard errors) is said to be a fall, where the course's own test finds none: of
# runs on noise alone one in a hundred has it, beside those that test calls falling.
SURELY = 1.5
# A drop at an epoch's border that is so many times the scatter of medians within the epochs is a stair.
STAIR = 3.0
# What fewer losses than a judgement needs are taken to scatter by: of single steps, and of means of a logging interval.
STEPS_SCATTER, MEANS_SCATTER = 0.3, 0.05
# Correlation of the losses of neighbouring steps, until a log shows its own: what one update forgets, both pay for.
ALIKE = 0.5
# A loss that is so many times the first from the first update on, and never comes back.
BLEW_UP = 2.0
# Nats a token: guessing costs ln(vocabulary), at most 12.5; some trainers add up 8 micro-batches.
NO_MODEL = 100.0
# The same for any vocabulary there is; with a rate that destroys, no sum of micro-batches is meant.
WORSE_THAN_GUESSING = 13.0
# Of the whole fall, hidden before the second line of a log.
HIDDEN = 0.3


def nonfinite(history: History) -> Finding | None:
    """Steps whose loss is not finite: recorded as such, never as 0."""
    if history.stock:
        return None
    lost = np.isnan(history.column("loss")) & (history.column("nonfinite_micro_batches") > 0)
    bad = history.column("step")[lost]
    if not len(bad):
        return None
    last = bool(lost[-1])
    values = {"n": len(bad), "steps": listed(bad)}
    return Finding("loss", "wrong" if last else "watch", "explain.loss_nonfinite", values)


def course(history: History) -> Finding | None:
    """Down, flat, up, or down and up again, against its own scatter (judge/course.py). GRPO's and PPO's say nothing."""
    step, loss = history.finite("loss")
    if stock_zeros(history) or blew_up(history) is not None or history.task in NO_LOSS:
        return None
    if len(loss) < (4 if history.coarse == 1 else 3):
        return Finding("loss", "note", "explain.loss_short", {"n": len(loss)})
    did = _course(history)
    first, last = ends(loss)
    lowest = int(np.argmin(loss))
    chance = 2 * did.noise.sigma * did.noise.inflation * math.sqrt(2 / at_end(did.n))
    values = {"first": first, "last": last, "lowest": float(loss[lowest]), "n": len(loss), "chance": chance}
    values |= {"percent": 100 * (first - last) / first if first else 0.0, "step": int(step[lowest])}
    values["every"] = history.coarse
    if did.kind == "rose":
        values |= {"low": did.low, "last": did.end, "step": int(step[did.at])}
        if history.task == OTHER and did.end > first:
            return Finding("loss", "note", "explain.loss_rose_own", values)
        if did.end > first:
            return Finding("loss", "wrong", "explain.loss_rose", values)
        return Finding("loss", "watch", "explain.loss_turned", values)
    if did.kind in ("falling", "settled", "fell"):
        return Finding("loss", "healthy", "explain.loss_fell", values)
    if history.coarse > 1 and loss[0] - median(loss[1:]) > 4 * did.noise.sigma:
        values |= {"first": float(loss[0]), "percent": 100 * (loss[0] - last) / loss[0] if loss[0] else 0.0}
        return Finding("loss", "healthy", "explain.loss_fell", values)
    ours = not history.stock and not history.attached  # an adapter is what is trained
    begun = ours and not history.finished and step[-1] < min(EARLY, history.planned or 0)
    if did.kind in ("flat", "undecided") and len(loss) >= FEW and begun:
        values |= {"step": int(step[-1]), "planned": history.planned}
        return Finding("loss", "note", "explain.loss_early", values)
    if did.kind == "flat" and len(loss) >= FEW:
        coarse = history.coarse > 1
        if not coarse and first - last > SURELY * chance:
            return Finding("loss", "watch", "explain.loss_little", values)
        return Finding(
            "loss",
            "undecided" if coarse else "watch",
            "explain.loss_flat_coarse" if coarse else "explain.loss_flat",
            values,
        )
    return Finding("loss", "undecided", "explain.loss_unclear", values)


def _course(history: History) -> Course:
    """A line of a coarse log is the mean of many steps, which scatters less than a step."""
    _, loss = history.finite("loss")
    assumed = STEPS_SCATTER if history.coarse == 1 else MEANS_SCATTER
    return judge(loss, small=SMALL, assumed=assumed, alike=ALIKE, alike_from=0)


def blew_up(history: History) -> Finding | None:
    """The loss rose at the first update and never came back: the first line is the only one of a sound model."""
    step, loss = history.finite("loss")
    if len(loss) < 4 or stock_zeros(history) or not loss[0] > 0 or history.task not in ("causal_lm", "seq_cls"):
        return None
    after = loss[2:]
    rate = history.column("learning_rate")
    peak = float(np.nanmax(rate)) if np.isfinite(rate).any() else 0.0
    if peak > FAR_RATE and after.min() > WORSE_THAN_GUESSING:  # the first line of a coarse log is too late
        values = {"last": ends(loss)[1], "first": float(loss[0]), "step": int(step[0]), "rate": peak}
        return Finding("loss", "wrong", "explain.loss_beyond", values)
    if not after.min() > BLEW_UP * loss[0]:
        return None
    values = {"first": float(loss[0]), "last": median(after), "factor": median(after) / float(loss[0])}
    values |= {"rate": peak, "step": int(step[1])}
    key = "explain.loss_blew_up_rate" if peak > FAR_RATE else "explain.loss_blew_up"
    return Finding("loss", "wrong", key, values)


def no_model(history: History) -> Finding | None:
    """A first loss far above what guessing costs: the model was broken before it was trained."""
    step, loss = history.finite("loss")
    if not len(loss) or history.task != "causal_lm" or step[0] > WINDOW * history.coarse or not loss[0] > NO_MODEL:
        return None
    return Finding("loss", "wrong", "explain.no_model", {"first": float(loss[0]), "step": int(step[0])})


def stock_zeros(history: History) -> list[int]:
    """Rows of a stock log with a loss of exactly 0: the filter's average of nothing (design section 6).

    None for GRPO and PPO, whose loss is 0 by construction.
    """
    if not history.stock or history.task in NO_LOSS:
        return []
    return [int(step) for step, loss in zip(history.column("step"), history.column("loss"), strict=True) if loss == 0]


def plateau(history: History) -> Finding | None:
    """The second half moved by less than SMALL although the first half fell: and the likeliest reason.

    In this order, for each explains those after it: the rate has run out, or fell at once where the loss still did;
    the data were not seen once; prompts are in the loss, which no adapter learns to predict.
    """
    step, loss = history.finite("loss")
    fell = course(history)
    if len(loss) < 4 * WINDOW or fell is None or fell.key != "explain.loss_fell":
        return None
    half = len(loss) // 2
    first, end = ends(loss[:half])[0], ends(loss)[1]
    middle = median(loss[half : half + WINDOW])
    if not middle > 0 or first - middle < LEARNED * first or abs(middle - end) > SMALL * middle:
        return None
    since = int(step[half])
    values = {"since": since, "loss": end, "moved": 100 * abs(middle - end) / middle}
    rate = history.column("learning_rate")
    if np.isfinite(rate).any():
        own = rate[np.isfinite(history.column("loss"))]
        if median(own[half:]) < SPENT * np.nanmax(own):
            return Finding("loss", "note", "explain.plateau_rate", values | {"rate": median(own[half:])})
        if dropped := _stopped_by_a_drop(step, loss, own, middle):
            return Finding("loss", "note", "explain.plateau_dropped", values | dropped)
    epochs = history.epochs
    if epochs is not None and epochs < 1:
        return Finding("loss", "note", "explain.plateau_first_epoch", values | {"share": 100 * epochs})
    if history.setting("data.train_on_inputs"):
        return Finding("loss", "watch", "explain.plateau_prompts", values)
    return None if epochs is None else Finding("loss", "note", "explain.plateau", values | {"epochs": epochs})


def _stopped_by_a_drop(step: np.ndarray, loss: np.ndarray, rate: np.ndarray, level: float) -> dict[str, float]:
    """A rate that fell at once where the loss was on its way down and then stayed; empty where none did.

    A rate that is lowered because the loss has settled explains nothing: it was at its level before.
    """
    held = rate[1:] <= DROP * rate[:-1]
    for at in np.flatnonzero(held & (rate[:-1] > 0)) + 1:
        half = max(WINDOW, at // 4) // 2  # the last quarter before, in two
        before, after = loss[max(0, at - 2 * half) : at], loss[at : at + WINDOW]
        if len(before) < WINDOW or len(after) < WINDOW or rate[at:].max() > rate[at - 1] * DROP:
            continue
        chance = 3 * 1.25 * scatter(np.diff(before)) / math.sqrt(2) * math.sqrt(2 / half)
        fell = median(before[:half]) - median(before[half:])
        if fell > max(chance, SMALL * level) and abs(median(after) - level) <= 2 * SMALL * level:
            return {"step": int(step[at]), "before": float(rate[at - 1]), "after": float(rate[at])}
    return {}


def stairs(history: History) -> Finding | None:
    """Drops at the borders of epochs: rows seen again are partly known by heart."""
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
    if history.task != "causal_lm" or len(loss) < WINDOW or stock_zeros(history):
        return None
    last = ends(loss)[1]
    if last >= BY_HEART or loss[0] < UNTRAINED:
        return None
    if _knows_others(history):
        return None
    if history.epochs is None:
        return Finding("loss", "watch", "explain.by_heart_sometime", {"last": last})
    return Finding("loss", "watch", "explain.by_heart", {"last": last, "epochs": history.epochs})


def _knows_others(history: History) -> bool:
    """Whether the evaluation rows are known as well, and are others as far as anybody looked."""
    _, evaluated = evaluations(history)
    overlap = overlap_of(history)
    are_others = not is_same_file(history) and not (overlap and overlap[0] + overlap[1])
    return bool(len(evaluated)) and median(evaluated[-3:]) < BY_HEART and are_others


def jagged(history: History) -> Finding | None:
    """How far neighbouring steps differ: of the same size throughout, it is the batches and no illness."""
    step, loss = history.finite("loss")
    if len(loss) < 2 * WINDOW or history.coarse > 1 or stock_zeros(history):
        return None
    half = len(loss) // 2
    if not min(median(loss[:half]), median(loss[half:])) > 0:
        return None
    # neighbours differ by sqrt(2) times their scatter, whatever the trend
    early, late = (scatter(np.diff(part)) / math.sqrt(2) / median(part) for part in (loss[:half], loss[half:]))
    if not np.isfinite(early) or late < 0.02:
        return None
    worst = int(np.argmax(loss))
    values = {"early": 100 * early, "late": 100 * late, "batch": history.rows_per_step}
    values |= {"highest": float(loss[worst]), "step": int(step[worst])}
    quarter = half // 2
    # what has learned something scatters more; medians of k losses differ by 1.25 scatter sqrt(2 / k) by chance
    chance = 2 * 1.25 * late * median(loss[half:]) * math.sqrt(2 / quarter)
    improves = median(loss[-quarter:]) < median(loss[half : half + quarter]) - chance
    wider = late * median(loss[half:]) > early * median(loss[:half])  # a loss near 0 scatters by many times itself
    if late > 2 * early and late > 0.1 and wider and not improves:
        return Finding("loss", "watch", "explain.jagged_more", values)
    known = history.rows_per_step != "?"
    return Finding("loss", "healthy", "explain.jagged" if known else "explain.jagged_log", values)


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


RULES = (nonfinite, no_model, blew_up, course, plateau, stairs, by_heart, jagged, coarse_log)
