"""What the demonstration promises, each as a line that is true or false."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contenders import Contender, first_bad
from .model import MODULE

SECONDS = 180
# The stock side rounds LoRA's products to float16, ours does not: they may overflow a few steps apart.
STEPS_APART = 5
# One batch differs from the next.
WINDOW = 5


@dataclass(frozen=True)
class Bar:
    """One promise."""

    promise: str
    kept: bool
    found: str


def judge(stock: Sequence[Contender], stop: Contender, heal: Contender, batches: list[list[int]]) -> list[Bar]:
    """Every promise but the time."""
    first, second, third = stock
    return [
        bar_same_start(first, heal),
        bar_caused_by_training(first),
        bar_stock("row 1", first, moves=False, dead=False),
        bar_stock("row 2", second, moves=True, dead=True),
        bar_stock("row 3", third, moves=True, dead=False),
        *bars_stop(stop, first, batches),
        *bars_heal(heal),
    ]


def bar_same_start(stock: Contender, ours: Contender) -> Bar:
    """The same model on the same rows gives nearly the same first losses."""
    pairs = list(zip(stock.losses[:3], ours.losses[:3], strict=False))
    worst = max((abs(a / b - 1) if a and b else 1.0 for a, b in pairs), default=1.0)
    return Bar("both sides start alike: first three losses within 1%", worst < 0.01, f"largest difference {worst:.2%}")


def bar_caused_by_training(stock: Contender) -> Bar:
    """Ten healthy steps and more, in which the loss falls."""
    step = stock.collapse_step or 0
    healthy = [loss for loss in stock.losses[: max(step - 1, 0)] if loss is not None]
    falls = len(healthy) >= 2 * WINDOW and mean(healthy[-WINDOW:]) < mean(healthy[:WINDOW])
    kept = falls and 10 <= step <= 40
    found = f"{len(healthy)} healthy steps, collapse at step {stock.collapse_step}"
    return Bar("training causes it: healthy steps with a falling loss come first", kept, found)


def bar_stock(name: str, row: Contender, moves: bool, dead: bool) -> Bar:
    """A row of the table from symptom to cause."""
    rate, adapter = "moves" if moves else "frozen", "adapter dead" if dead else "weights intact"
    promise = f"{name}: loss 0.0, grad_norm nan, learning rate {rate}, {adapter}"
    losses, norms = row.tail("loss"), row.tail("grad_norm")
    n_bad, n = row.weights or (0, 0)
    zeros = len(losses) >= 2 * WINDOW and all(loss == 0.0 for loss in losses) and all(norm is None for norm in norms)
    weights = n_bad > 0 if dead else n_bad == 0 and row.unchanged is True
    found = (
        f"{len(losses)} steps of loss {losses[-1] if losses else '-'}, learning rate "
        f"{'moves' if row.lr_moves() else 'frozen'}, {n_bad:,} of {n:,} weights not finite"
    )
    return Bar(promise, zeros and row.lr_moves() is moves and weights and row.exit_code == 0, found)


def bars_stop(stop: Contender, stock: Contender, batches: list[list[int]]) -> list[Bar]:
    """on_collapse=stop: exit code, module, step and rows."""
    diagnosis = stop.diagnosis or {}
    step, rows = diagnosis.get("step"), diagnosis.get("rows") or []
    near = step is not None and abs(step - (stock.collapse_step or -STEPS_APART)) <= STEPS_APART
    batch = batches[step - 1] if step else []
    verified = [str(remedy["change"]) for remedy in diagnosis.get("remedies", []) if remedy["verified"]]
    named = [diagnosis.get(key) for key in ("kind", "phase", "module")]
    at_step = step == first_bad(stop.losses) and near
    n_bad = stop.weights[0] if stop.weights else None
    return [
        Bar("stop: exit code 3, adapter healthy", stop.exit_code == 3 and n_bad == 0, f"{stop.exit_code}, {n_bad} bad"),
        Bar("stop: names the module", named == ["forward_overflow", "forward", MODULE], f"{named[0]} in {named[2]}"),
        Bar("stop: the first bad step, near the stock side's", at_step, f"{step}; stock {stock.collapse_step}"),
        Bar("stop: rows of that step's batch", bool(rows) and set(rows) <= set(batch), f"rows {rows} of {batch}"),
        Bar("stop: a remedy verified on the step", bool(verified), "; ".join(verified) or "none"),
    ]


def bars_heal(heal: Contender) -> list[Bar]:
    """on_collapse=heal: goes on, with a loss that falls."""
    step = heal.collapse_step or 0
    before = [loss for loss in heal.losses[: max(step - 1, 0)] if loss is not None][-WINDOW:]
    end = [loss for loss in heal.losses[-WINDOW:] if loss is not None]
    falls = len(end) == WINDOW and bool(before) and mean(end) < mean(before)
    found = f"{mean(before):.2f} before step {step}, {mean(end):.2f} at the end" if before and end else "no such losses"
    finite = bool(heal.losses) and None not in heal.losses
    code = heal.exit_code
    return [
        Bar("heal: exit code 0, every step finite", code == 0 and finite, f"{code}, {len(heal.losses)} steps"),
        Bar("heal: the loss goes on falling", falls, found),
    ]


def bar_time(seconds: float) -> Bar:
    """All of it, imports included."""
    return Bar(f"under {SECONDS} s in total", seconds < SECONDS, f"{seconds:.0f} s")


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)
