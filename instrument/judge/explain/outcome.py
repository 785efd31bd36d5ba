"""How the run ended, and what went wrong on the way."""

from __future__ import annotations

from .finding import Finding, listed
from .history import History

MOST = 5


def finished(history: History) -> Finding | None:
    """Whether the run came to its end: metrics.jsonl ends with its summary, a state with its last step."""
    if history.kind == "log":
        return None
    last = int(history.column("step")[-1])
    if history.finished:
        return Finding("outcome", "healthy", "explain.finished", {"step": last})
    if any(incident["action"] == "stop" for incident in history.incidents):
        return None
    return Finding("outcome", "note", "explain.not_finished", {"step": last})


def incidents(history: History) -> list[Finding]:
    """Each collapse, MOST of them; one that was healed is past, and is to be known all the same."""
    found = []
    for incident in history.incidents[:MOST]:
        change = next((r["change"] for r in incident["remedies"] if r.get("verified")), None)
        values = {
            "step": incident["step"],
            "kind": incident["kind"],
            "module": incident.get("module") or "-",
            "rows": listed(incident["evidence"]["rows_alone"] or incident["rows"]) or "-",
            "change": change or "-",
            "run": history.name,
        }
        if history.attached:
            key = "explain.attached_stopped" if incident["action"] == "stop" else "explain.attached_went_on"
        elif incident["action"] == "stop":
            key = "explain.stopped" if change else "explain.stopped_without_remedy"
        else:
            key = "explain.healed" if change else "explain.went_on"
        ended = history.attached or incident["action"] == "stop"
        found.append(Finding("outcome", "wrong" if ended else "watch", key, values))
    if len(history.incidents) > MOST:
        found.append(Finding("outcome", "note", "explain.more_incidents", {"n": len(history.incidents) - MOST}))
    return found


def other_step_next_time(history: History) -> Finding | None:
    """Why the same script fails at another step tomorrow: the row that overflows comes when the seed says so.

    Source: design section 6; the order of rows is drawn from training.seed.
    """
    for incident in history.incidents:
        rows = incident["evidence"]["rows_alone"]
        if rows and incident.get("phase") == "forward":
            values = {"rows": listed(rows), "step": incident["step"], "seed": history.setting("training.seed", "?")}
            return Finding("outcome", "note", "explain.other_step", values)
    return None


def damaged(history: History) -> Finding | None:
    """Statistics of layers that are there and cannot be read."""
    _ = history.layers
    return Finding("outcome", "watch", "explain.damaged") if history.damaged else None


RULES = (finished, other_step_next_time, damaged)
