"""Many runs as one table: sorted by the metric that decides, with the settings that differ as columns."""

from __future__ import annotations

from collections.abc import Sequence

from ...judge.metrics import lower_is_better
from ...messages import say_in
from ...read.history import History
from ..page.people import UNKNOWN, number
from .differences import Difference, weighty
from .ranking import best_of, metrics_of
from .words import aligned

# From so many runs on a table is read faster than lists of letters.
FROM = 4
COLUMNS = 6


def table(histories: Sequence[History], names: Sequence[str], differing: Sequence[Difference], lang: str) -> list[str]:
    """A line for each run, best first; runs without the metric stand last.

    Not only what may be ranked is listed: whether it may, the findings say.
    """
    metric = next(iter(metrics_of(histories)), None)
    lower = metric is None or lower_is_better(metric, histories[0])
    bests = [best_of(history, metric, lower) if metric else None for history in histories]
    order = sorted(range(len(names)), key=lambda i: _place(bests[i], lower))
    kept = [difference for difference in weighty(differing) if not difference.key.startswith("environment.")]
    columns, more = kept[:COLUMNS], kept[COLUMNS:]
    head = ["", metric or "eval_loss", say_in(lang, "compare.table_step"), say_in(lang, "compare.table_steps")]
    rows = [[*head, *(difference.key.rpartition(".")[2] for difference in columns), ""]]
    for i in order:
        best, last = bests[i], int(histories[i].column("step")[-1])
        value, step = (number(best.value), f"{best.step:,}") if best else (UNKNOWN, UNKNOWN)
        rows.append(
            [names[i], value, step, f"{last:,}", *(difference.values[i] for difference in columns), histories[i].name]
        )
    lines = [f"  {line}" for line in aligned(rows)]
    if more:
        lines.append("  " + say_in(lang, "compare.table_more", keys=", ".join(difference.key for difference in more)))
    return lines


def _place(best: object, lower: bool) -> tuple[bool, float]:
    level = getattr(best, "level", None)
    return (True, 0.0) if level is None else (False, level if lower else -level)
