"""How the run ended, and what went wrong on the way."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import Any

from ....read.history import History
from ...wording import OTHER_TROUBLE, TROUBLES
from ..finding import WINDOW, Finding, Phrase, at_end, ends, listed, median, scatter

MOST = 5
# The end is a median of a dozen losses and the start may be a single one.
SCATTERS = 3.0


def finished(history: History) -> Finding | None:
    """Whether the run came to its end: metrics.jsonl ends with its summary, a state with its last step."""
    if history.kind == "log":
        return None
    last = history.last_step
    if history.stopped_early and history.planned:
        values = {"step": last, "planned": history.planned}
        return Finding("outcome", "healthy", "explain.stopped_early", values)
    if history.finished:
        return Finding("outcome", "healthy", "explain.finished", {"step": last})
    if any(incident["action"] == "stop" for incident in history.incidents):
        return None
    return Finding("outcome", "note", "explain.not_finished", {"step": last})


def incidents(history: History) -> list[Finding]:
    """Each collapse, MOST of them; one that was healed is past, and is to be known all the same.

    What to put into the next run stands at the last one that was healed, for all of them: of a key the last value.
    """
    found = []
    shown = history.incidents[:MOST]
    settings = [_settings(incident) for incident in shown]
    together = " ".join({key: text for own in settings for key, text in own.items()}.values())
    last = max((i for i, own in enumerate(settings) if own), default=-1)
    for i, incident in enumerate(shown):
        change = " ".join(settings[i].values())
        values = {
            "step": incident["step"],
            "kind": incident["kind"],
            "trouble": Phrase(TROUBLES.get(incident["kind"], OTHER_TROUBLE)),
            "module": incident.get("module") or "-",
            "rows": listed(incident["evidence"]["rows_alone"] or incident["rows"]) or "-",
            "change": change or "-",
            "together": together,
            "run": shlex.quote(history.name),
        }
        ended = history.attached or incident["action"] == "stop"
        finding = Finding("outcome", "wrong" if ended else "watch", _sentence(history, incident, change), values)
        found.append(finding if ended or i == last or not change else replace(finding, advises=False))
    if len(history.incidents) > MOST:
        found.append(Finding("outcome", "note", "explain.more_incidents", {"n": len(history.incidents) - MOST}))
    return found


def _sentence(history: History, incident: dict[str, Any], change: str) -> str:
    stopped = incident["action"] == "stop"
    if history.attached:
        return "explain.attached_stopped" if stopped else "explain.attached_went_on"
    if stopped:
        return "explain.stopped" if change else "explain.stopped_without_remedy"
    return "explain.healed" if change else "explain.went_on"


def _settings(incident: dict[str, Any]) -> dict[str, str]:
    """`section.key` -> `section.key=value` of the remedy that helped; that it went back to a step is no setting."""
    change = next((remedy["change"] for remedy in incident["remedies"] if remedy.get("verified")), "")
    parts = re.split(r" (?=\w+(?:\.\w+)?=)", change)
    return {part.partition("=")[0]: part for part in parts if "." in part.partition("=")[0]}


def healed_worse(history: History) -> Finding | None:
    """A run that was healed and ended above the untouched model: the first step's loss is that of the base."""
    if not history.incidents or any(incident["action"] == "stop" for incident in history.incidents):
        return None
    _, loss = history.finite("loss")
    if len(loss) < WINDOW or history.attached:
        return None
    first, last = median(loss[: at_end(len(loss))]), ends(loss)[1]
    first = max(first, float(loss[0]))  # what rose within the first steps is no start
    if last <= first + SCATTERS * scatter(loss[-WINDOW:]):
        return None
    return Finding("outcome", "wrong", "explain.healed_worse", {"first": first, "last": last})


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


RULES = (finished, healed_worse, other_step_next_time, damaged)
