"""lora-train explain: what the numbers of a run mean, judged from the run itself. Imports no torch.

    history = read_history("runs/koalpaca")     history.py: a run folder, a trainer_state.json, a pasted log
    findings = explain(history)                 outcome, loss, stock, evaluation, gradients, schedule, resources: rules
    print("\\n".join(lines(history, findings, "ko")))

A rule is one function of the history that returns a finding or None; its thresholds stand at the head of its file.
"""

from __future__ import annotations

import numpy as np

from ...messages import say_in
from . import evaluation, gradients, loss, outcome, resources, schedule, stock
from .finding import TOPICS, VERDICTS, Finding
from .history import History, SourceError, read_history

__all__ = ["TOPICS", "Finding", "History", "SourceError", "explain", "lines", "read_history"]

RULES = (
    *outcome.RULES,
    *stock.RULES,
    *loss.RULES,
    *evaluation.RULES,
    *gradients.RULES,
    *schedule.RULES,
    *resources.RULES,
)


def explain(history: History) -> list[Finding]:
    """Every finding, in the order a person asks."""
    if history.steps.empty:
        return [Finding("outcome", "note", "explain.no_steps"), *outcome.incidents(history)]
    with np.errstate(all="ignore"):
        found = outcome.incidents(history) + [finding for rule in RULES if (finding := rule(history))]
    return sorted(found, key=lambda finding: list(TOPICS).index(finding.topic))


def lines(history: History, findings: list[Finding], lang: str) -> list[str]:
    """The explanation as text: for each topic what it is, then the judgements, each with what to change."""
    n, evals = len(history.steps), len(history.evals)
    text = [say_in(lang, "explain.head", name=history.name, n=n, evals=evals)]
    if history.kind != "run":
        text.append(say_in(lang, "explain.head_stock"))
    for topic in TOPICS:
        own = [finding for finding in findings if finding.topic == topic]
        if not own:
            continue
        text += ["", f"{topic}  {say_in(lang, TOPICS[topic])}"]
        for finding in own:
            text.append(f"  {say_in(lang, VERDICTS[finding.verdict])}  {finding.sentence(lang)}")
            if hint := finding.hint(lang):
                text.append(f"  {say_in(lang, 'explain.change')}  {hint}")
    return text
