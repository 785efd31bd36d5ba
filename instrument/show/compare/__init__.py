"""lora-train compare: what differs between runs, what follows from it, where they part, and which is better on what.

differences.py reads configuration and environment, parting.py finds the first number that is not the same, this file
weighs the outcomes. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...judge.explain.finding import VERDICTS, Finding, ends, median
from ...messages import say_in
from ...read.history import History
from ...read.store import write_text
from ..page import document
from ..page.people import number
from .differences import Difference, consequences, differences
from .parting import parting

# Two runs that differ only in their seed end this far apart.
ALIKE = 0.01
FASTER = 1.05
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
    for history, name in zip(histories[1:], names[1:], strict=True):
        found += parting(histories[0], history, names[0], name, differing)
    with np.errstate(all="ignore"):
        found += [finding for rule in RULES if (finding := rule(histories, names)) is not None]
    return Comparison(list(histories), names, differing, found)


def _remark(key: str, verdict: str = "note", **values: Any) -> Finding:
    return Finding("compare", verdict, key, values)


def final_loss(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """The last losses of training."""
    last = [ends(loss)[1] if len(loss) else np.nan for _, loss in (history.finite("loss") for history in histories)]
    return _ranked("compare.loss_better", "compare.loss_alike", last, names, lower=True)


def best_evaluation(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """The lowest evaluation loss."""
    best = [float(h.evals["eval_loss"].astype("float64").min()) if len(h.evals) else np.nan for h in histories]
    return _ranked("compare.eval_loss_better", "compare.eval_loss_alike", best, names, lower=True)


def speed(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """Tokens a second at the median step."""
    return _ranked(
        "compare.speed_better",
        "compare.speed_alike",
        [median(history.column("tokens_per_second")) for history in histories],
        names,
        lower=False,
    )


def memory(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """The most memory that was held: of the GPU where every run has one."""
    for column in ("memory_reserved_gib", "host_memory_gib"):
        values = [history.column(column) for history in histories]
        if all(np.isfinite(v).any() for v in values):
            return _ranked(
                "compare.memory_better",
                "compare.memory_alike",
                [float(np.nanmax(v)) for v in values],
                names,
                lower=True,
            )
    return None


def _ranked(better: str, alike: str, values: Sequence[float], names: Sequence[str], lower: bool) -> Finding | None:
    known = [(value, name) for value, name in zip(values, names, strict=True) if np.isfinite(value)]
    if len(known) < 2:
        return None
    ordered = sorted(known, reverse=not lower)
    (best, winner), (second, _) = ordered[0], ordered[1]
    listed = ", ".join(f"{name} {number(value)}" for value, name in known)
    margin = abs(second - best) / max(abs(second), 1e-12)
    if margin < (ALIKE if lower else FASTER - 1):
        return _remark(alike, listed=listed)
    return _remark(better, "healthy", listed=listed, winner=winner, percent=100 * margin)


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
    listed = ", ".join(f"{name} x{spread:.3g} (median {middle:.3g})" for spread, middle, name in spreads)
    widest, calmest = max(spreads), min(spreads)
    return _remark(
        "compare.norm_spread", listed=listed, widest=widest[2], factor=widest[0] / calmest[0], calmest=calmest[2]
    )


RULES = (final_loss, best_evaluation, norm_spread, speed, memory)


def comparison_lines(comparison: Comparison, lang: str) -> list[str]:
    """The comparison in words."""
    lines = [
        f"{name}  {history.name}  ({say_in(lang, 'compare.run', n=len(history.steps), evals=len(history.evals))})"
        for name, history in zip(comparison.names, comparison.histories, strict=True)
    ]
    if comparison.differing:
        lines += ["", say_in(lang, "compare.differs")]
        for difference in comparison.differing:
            own = "  ".join(f"{n} {v}" for n, v in zip(comparison.names, difference.values, strict=True))
            lines.append(f"  {difference.key:<40} {own}")
    lines += [""]
    for finding in comparison.findings:
        lines.append(f"  {say_in(lang, VERDICTS[finding.verdict])}  {finding.sentence(lang)}")
        if hint := finding.hint(lang):
            lines.append(f"  {say_in(lang, 'explain.change')}  {hint}")
    return lines


def write_comparison(comparison: Comparison, output: Path) -> Path:
    """Writes the page that overlays the runs, and returns its path.

    Raises:
        OSError: it cannot be written.
    """
    from .overlay import SCRIPTS, comparison_data

    data = comparison_data(comparison)
    write_text(output, document(" / ".join(run["name"] for run in data["runs"]), data, SCRIPTS))
    return output
