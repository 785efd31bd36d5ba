"""lora-train explain: what the numbers of a run mean, judged from the run itself. Imports no torch.

    history = read_history("runs/koalpaca")     read/logs: a run folder, a trainer_state.json, a log
    findings = explain(history)                 rules/: one file a topic; reconcile.py: which of them may stand
                                                together; overall.py: the first line
    print("\\n".join(lines(history, findings, "ko")))

A rule is one function of the history that returns a finding or None; its thresholds stand at the head of its file.
"""

from __future__ import annotations

import numpy as np

from ...messages import say_in
from ...read.history import History, SourceError
from ...read.logs import read_history
from ..wording import DESCRIBED, OURS, lines_of
from .finding import TOPICS, VERDICTS, Finding
from .glossary import glossary
from .overall import exit_code, overall
from .reconcile import reconcile
from .rules import RULES, metric, outcome, rows

__all__ = [
    "TOPICS", "Finding", "History", "SourceError", "advised", "exit_code", "explain", "glossary", "lines",
    "read_history",
]  # fmt: skip


def explain(history: History) -> list[Finding]:
    """Every finding: all in all first, then in the order a person asks. No two of them ask for opposite moves."""
    if history.steps.empty:
        return [Finding("outcome", "note", "explain.no_steps"), *outcome.incidents(history)]
    with np.errstate(all="ignore"):
        found = outcome.incidents(history) + [finding for rule in RULES if (finding := rule(history))]
    found = reconcile(rows.soften(metric.chosen(history, found)))
    return [overall(history, found), *found]


def lines(history: History, findings: list[Finding], lang: str, trainer: str | None = None) -> list[str]:
    """The explanation as text: for each topic what it is, then the judgements, each with what to change.

    Args:
        trainer: whose keys advice names, one of TRAINERS; that of the history.
    """
    trainer = trainer or advised(history)
    n, evals = len(history.steps), len(history.evals)
    many = history.coarse > 1 and history.stock and n > 0
    head = {
        "name": history.name,
        "n": n,
        "evals": evals,
        "every": history.coarse,
        "step": history.last_step if n else 0,
    }
    text = [say_in(lang, "explain.head_coarse" if many else "explain.head", **head)]
    if history.kind != "run":
        text.append(say_in(lang, "explain.head_stock"))
    for topic in TOPICS:
        own = [finding for finding in findings if finding.topic == topic]
        if not own:
            continue
        described = DESCRIBED.get(history.task, {}).get(topic, TOPICS[topic])
        text += ["", f"{topic}  {say_in(lang, described)}"]
        for finding in own:
            text.append(f"  {say_in(lang, VERDICTS[finding.verdict])}  {finding.sentence(lang)}")
            if hint := finding.hint(lang, trainer):
                text.append(f"  {say_in(lang, 'explain.change')}  {hint}")
    return text if history.numbered else [lines_of(line, lang) for line in text]


def advised(history: History) -> str:
    """Whose keys advice names: those of the program that trained."""
    return "transformers" if history.attached and history.trainer == OURS else history.trainer
