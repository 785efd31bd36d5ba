"""The first line: where the run stands, the worst there is to say about it, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...read.history import History
from .finding import Finding, Phrase
from .reconcile import strength

EXIT_CODES = {"healthy": 0, "undecided": 0, "watch": 1, "wrong": 2}
"""Of `--exit-code`; 3 says that the source cannot be read."""
JUDGED = ("wrong", "watch", "undecided")


def overall(history: History, findings: Sequence[Finding]) -> Finding:
    """One judgement of all of them; its advice is that of the gravest."""
    counts = Counter(finding.verdict for finding in findings)
    verdict = next((verdict for verdict in JUDGED if counts[verdict]), "healthy")
    values = {"state": _state(history), "n_wrong": counts["wrong"], "n_watch": counts["watch"]}
    if verdict == "healthy":
        return Finding("overall", "healthy", "explain.overall_healthy", values)
    first = min((finding for finding in findings if finding.verdict in JUDGED), key=strength)
    values |= {"n_undecided": counts["undecided"], "topic": first.topic, "step": first.values.get("step")}
    key = "explain.overall_undecided" if verdict == "undecided" else "explain.overall"
    advising = [finding for finding in findings if finding.verdict in JUDGED and finding.hint("en")]
    return Finding("overall", verdict, key, values, repeats=min(advising, key=strength, default=None))


def exit_code(findings: Sequence[Finding]) -> int:
    """0 nothing, 1 something to watch, 2 something wrong."""
    return max((EXIT_CODES.get(finding.verdict, 0) for finding in findings), default=0)


def _state(history: History) -> Phrase:
    step = history.last_step
    if any(incident["action"] == "stop" for incident in history.incidents):
        return Phrase("explain.state_stopped", {"step": step})
    if history.finished:
        return Phrase("explain.state_finished", {"step": step})
    if not history.numbered:
        return Phrase("explain.state_lines", {"step": step})
    if history.planned:
        return Phrase("explain.state_unfinished_of", {"step": step, "planned": history.planned})
    return Phrase("explain.state_unfinished", {"step": step})
