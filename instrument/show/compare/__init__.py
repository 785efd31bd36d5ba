"""lora-train compare: what differs between runs, what follows from it, where they part, and which is better on what.

comparable.py says whether the evaluations may be held against each other, ranking.py which run is best and whether that
is more than chance, rates.py what they cost; differences.py reads configuration and environment, parting.py finds the
first number that is not the same, table.py lists many runs. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...judge.explain.finding import VERDICTS, Finding, ends, median
from ...judge.explain.rules.kinds import added_up
from ...messages import say_in
from ...read.files import write_text
from ...read.history import History
from ..page import document
from ..page.people import number
from .comparable import comparability, missing, same_measure
from .differences import Difference, consequences, differences
from .parting import parting
from .ranking import MANY, SEED, rank
from .rates import rates
from .steadiness import steadiness
from .table import FROM, table
from .words import listed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        histories: of the runs; the first is what the others are held against.
        names: a letter for each.
        differing: settings and surroundings that are not the same everywhere.
        findings: in the order they are to be read.
    """

    histories: list[History]
    names: list[str]
    differing: list[Difference]
    findings: list[Finding]


def compare_runs(histories: Sequence[History]) -> Comparison:
    """Compares runs with the first of them."""
    names = [LETTERS[i] if i < len(LETTERS) else str(i + 1) for i in range(len(histories))]
    differing = differences(histories)
    found = consequences(histories, names, differing)
    if len(histories) < MANY:
        for history, name in zip(histories[1:], names[1:], strict=True):
            found += parting(histories[0], history, names[0], name, differing)
    with np.errstate(all="ignore"):
        found = [*evaluations(histories, names), *found]
        found += summed(histories, names)
        if same_measure(histories, differing) and (last := final_loss(histories, names)):
            found.append(last)
        if spread := norm_spread(histories, names):
            found.append(spread)
        if len(histories) < MANY:
            found += steadiness(histories, names)
        found += rates(histories, names)
    return Comparison(list(histories), names, differing, found)


def evaluations(histories: Sequence[History], names: Sequence[str]) -> list[Finding]:
    """Whether the evaluations may be held against each other, and which run is best by them."""
    judged = [(history, name) for history, name in zip(histories, names, strict=True) if len(history.evals)]
    own, letters = [history for history, _ in judged], [name for _, name in judged]
    known = comparability(own, letters, differences(own) if len(own) > 1 else [])
    return [*known.findings, *rank(own, letters, known), *missing(histories, names)]


def summed(histories: Sequence[History], names: Sequence[str]) -> list[Finding]:
    """Runs whose training losses and gradient norms are sums over micro-batches, and so many times too large."""
    found = [(name, added_up(history)) for history, name in zip(histories, names, strict=True)]
    return [_remark("compare.added_up", run=name, k=one.values["k"]) for name, one in found if one is not None]


def _remark(key: str, **values: Any) -> Finding:
    return Finding("compare", "note", key, values)


def final_loss(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """The last losses of training: a fact, and no judge of which run is better."""
    last = [ends(loss)[1] if len(loss) else np.nan for _, loss in (history.finite("loss") for history in histories)]
    if not np.isfinite(last).all():
        return None
    order = sorted(range(len(last)), key=lambda i: last[i])
    best, highest = last[order[0]], last[order[-1]]
    texts = listed(names, [number(value) for value in last])
    percent = 100 * (highest - best) / max(abs(highest), 1e-12)
    if percent < 100 * SEED:
        return _remark("compare.loss_alike", listed=texts)
    values = {"winner": names[order[0]], "highest": names[order[-1]], "percent": percent}
    return _remark("compare.loss_better", listed=texts, **values)


def norm_spread(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """How far grad_norm scatters within each run: its 95th over its 5th percentile."""
    spreads = []
    for history, name in zip(histories, names, strict=True):
        _, norm = history.finite("grad_norm")
        norm = norm[norm > 0]
        if len(norm) >= 4:
            spreads.append((float(np.quantile(norm, 0.95) / np.quantile(norm, 0.05)), median(norm), name))
    if len(spreads) < 2:
        return None
    texts = listed(
        [name for *_, name in spreads], [f"x{number(spread, 3)} ({number(middle, 3)})" for spread, middle, _ in spreads]
    )
    widest, calmest = max(spreads), min(spreads)
    values = {"widest": widest[2], "factor": widest[0] / calmest[0], "calmest": calmest[2]}
    return _remark("compare.norm_spread", listed=texts, **values)


def comparison_lines(comparison: Comparison, lang: str) -> list[str]:
    """The comparison in words."""
    histories, names, differing = comparison.histories, comparison.names, comparison.differing
    if len(histories) >= FROM:
        lines = table(histories, names, differing, lang)
    else:
        lines = [f"{name}  {h.name}  ({counts(h, lang)})" for name, h in zip(names, histories, strict=True)]
    shown = [d for d in differing if len(histories) < FROM or d.harmless]
    if shown and len(histories) < MANY:
        lines += ["", say_in(lang, "compare.differs")]
        for difference in shown:
            own = "  ".join(f"{n} {v}" for n, v in zip(names, difference.values, strict=True))
            lines.append(f"  {difference.key:<40} {own}")
    lines += [""]
    for finding in comparison.findings:
        lines.append(f"  {say_in(lang, VERDICTS[finding.verdict])}  {finding.sentence(lang)}")
        if hint := finding.hint(lang):
            lines.append(f"  {say_in(lang, 'explain.change')}  {hint}")
    return lines


def counts(history: History, lang: str) -> str:
    """How much there is of a run: steps, or lines of so many steps."""
    values = {"n": len(history.steps), "evals": len(history.evals)}
    if history.coarse > 1:
        return say_in(lang, "compare.run_lines", steps=int(history.column("step")[-1]), **values)
    return say_in(lang, "compare.run" if history.numbered else "compare.run_unnumbered", **values)


def write_comparison(comparison: Comparison, output: Path) -> Path:
    """Writes the page that overlays the runs, and returns its path.

    Raises:
        OSError: it cannot be written.
    """
    from .overlay import SCRIPTS, comparison_data

    data = comparison_data(comparison)
    write_text(output, document(" / ".join(run["name"] for run in data["runs"]), data, SCRIPTS))
    return output
