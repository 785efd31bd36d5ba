"""What one row says of a run or a study: a few numbers, a small picture of the loss, the verdict of its report.

A card is plain JSON, so that it can be kept. Imports no torch; pandas with the first card.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..messages import LANGUAGES
from ..read.damaged import parse_own_json, parse_yaml
from ..read.files import open_own, read_own
from ..read.history import History, SourceError
from ..read.schema import kind_of
from ..read.store import METRICS
from .tail import points, row_of

POINTS = 60
"""Of a picture of the loss."""
DIGITS = 5
PEEKED = 1 << 13
"""Bytes at the end of a metrics.jsonl: some ten lines."""


def card_of(path: Path, kind: str, judged: bool = True) -> dict[str, Any]:
    """The card of a run or a study; of one that cannot be read, `error` says why in every language.

    Args:
        judged: whether the verdict is wanted, which takes most of the time.

    Returns:
        step, planned (int | None), loss (float | None), spark ([steps], [loss or null]), best ({name, value, step} |
        None), seconds (float | None), started (seconds | None), finished, collapsed (bool), verdict ({verdict, topic,
        sentence} | None), trainer (str), error ({language: sentence} | None); of a study also trials and ended.
    """
    try:
        return _study(path) if kind == "study" else _run(path, judged)
    except SourceError as error:
        key, values = error.key, error.values
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:  # a file that nobody meant to be one
        key, values = "board.unreadable", {"what": type(error).__name__}
    return failed(key, **values)


def failed(key: str, /, **values: Any) -> dict[str, Any]:
    """The card of what cannot be read, with its sentence."""
    from ..show.page.people import both, without_paths

    return _empty() | {"error": without_paths(both(key, **values))}


def peek(path: Path) -> dict[str, Any]:
    """What costs nothing to know: the last step, its loss, whether the run is finished, when it was started."""
    try:
        env = parse_own_json(read_own(path / "env.json"))
        started = _time(env["started"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        started = None
    try:
        with open_own(path / METRICS) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - PEEKED))
            rows = [row for line in file.read().splitlines() if (row := row_of(line)) is not None]
    except OSError:
        rows = []
    known = points(rows)
    found = {"step": known[-1][0], "loss": known[-1][1]} if known else {}
    return found | {"started": started, "finished": bool(rows) and kind_of(rows[-1]) == "summary"}


def _empty() -> dict[str, Any]:
    return {
        "step": 0,
        "planned": None,
        "loss": None,
        "spark": [[], []],
        "best": None,
        "seconds": None,
        "started": None,
        "judged": True,
        "finished": False,
        "collapsed": False,
        "verdict": None,
        "trainer": "",
        "error": None,
    }


def _run(path: Path, judged: bool) -> dict[str, Any]:
    from ..judge.explain import explain, read_history
    from ..show.page.people import run_name, without_paths
    from ..show.report.charts import lost_steps, numbers
    from ..show.report.data import counted_in_lines
    from ..show.report.overview import gravest

    history = read_history(path)
    history = replace(history, name=run_name(history.name))
    judged = judged or history.run is None  # a log is judged at once: its zeros may be no losses
    findings = explain(history) if judged else []
    leading = gravest(findings) if judged else None
    steps, loss = numbers(history.steps["step"]), numbers(history.steps["loss"])
    lost = set(lost_steps(history, findings)) if steps else set()
    loss = [None if step in lost else value for step, value in zip(steps, loss, strict=True)]
    verdict = None
    if leading is not None and len(history.steps):
        sentence = without_paths({lang: leading.sentence(lang) for lang in LANGUAGES})
        sentence = sentence if history.numbered else counted_in_lines(sentence)
        verdict = {"verdict": leading.verdict, "topic": leading.topic, "sentence": sentence}
    return _empty() | {
        "step": history.last_step,
        "planned": history.planned,
        "loss": loss[-1] if loss else None,
        "spark": thinned(steps, loss),
        "best": best_of(history),
        "seconds": seconds_of(history),
        "started": _time(history.env.get("started")),
        "finished": history.finished,
        "collapsed": any(incident["action"] == "stop" for incident in history.incidents),
        "verdict": verdict,
        "trainer": history.trainer,
        "judged": judged,
    }


def _study(path: Path) -> dict[str, Any]:
    """A study: how many trials ended, and the best of them."""
    import yaml

    from ..advise.page.claims import STUDY, read_claims
    from ..judge.metrics import LOWER

    claims = read_claims(path)
    try:
        plan = parse_yaml(read_own(path / STUDY))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        plan = None
    plan = plan if isinstance(plan, dict) else {}
    planned = len(plan["plan"]) if isinstance(plan.get("plan"), list) else len(claims)
    ended = [claim for claim in claims if claim.ended is not None]
    reached = [claim for claim in ended if claim.value is not None and math.isfinite(claim.value)]
    metric = str(plan.get("metric") or "eval_loss")
    sign = 1 if metric.endswith(LOWER) else -1
    best = min(reached, key=lambda claim: sign * (claim.value or 0.0), default=None)
    spent = [claim.seconds for claim in claims if claim.seconds is not None]
    total = max(planned, len(claims))
    return _empty() | {
        "trials": total,
        "ended": len(ended),
        "dead": sum(claim.is_dead for claim in ended),
        "finished": bool(ended) and len(ended) >= total,
        "best": None if best is None else {"name": metric, "value": rounded(best.value), "step": best.step},
        "seconds": sum(spent) if spent else None,
    }


def best_of(history: History) -> dict[str, Any] | None:
    """The best evaluation, as the page of a run has it."""
    from ..judge.metrics import best_evaluation

    found = best_evaluation(history)
    return None if found is None else {"name": found[0], "value": rounded(found[2]), "step": found[1]}


def seconds_of(history: History) -> float | None:
    """How long a run took: its steps, evaluations and checkpoints; else what the Trainer's last line or bar says."""
    import numpy as np

    steps = history.column("step_seconds") if len(history.steps) else np.array([])
    if np.isfinite(steps).any():
        return round(sum(history.spent()), 1)
    spent = history.summary.get("train_runtime")
    if spent is None and len(history.progress):
        spent = float(history.progress["elapsed_seconds"].iloc[-1])
    return round(spent, 1) if isinstance(spent, (int, float)) and math.isfinite(spent) else None


def thinned(steps: Sequence[float | None], loss: Sequence[float | None]) -> list[list[float | None]]:
    """POINTS means of neighbouring losses at most, each at the last of its steps; null where none is a number."""
    known = [(s, v) for s, v in zip(steps, loss, strict=True) if s is not None]
    width = max(1, math.ceil(len(known) / POINTS))
    found: list[list[float | None]] = [[], []]
    for start in range(0, len(known), width):
        part = known[start : start + width]
        own = [v for _, v in part if v is not None]
        found[0].append(part[-1][0])
        found[1].append(rounded(sum(own) / len(own)) if own else None)
    return found


def rounded(value: Any) -> float | None:
    """A float of DIGITS digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
