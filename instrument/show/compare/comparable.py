"""Whether the evaluations of several runs measured the same thing; what did not is not ranked.

Our own runs store a hash of every evaluation row, of its tokens and its mask: rows with the same hash are the same
question asked in the same way, whatever tokenizer, template, mask rule and cut made them. Of runs without hashes the
settings tell, of logs the number of rows (eval_runtime x eval_samples_per_second).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...judge.explain.finding import Finding, median
from ...judge.explain.rules.rows import overlap_of
from ...read.eval_rows import EvaluationRows, read_rows, stored_steps
from ...read.history import History
from ..page.people import number
from .differences import Difference, told
from .words import listed

# What makes a loss a token another number; the first are which rows there are.
ROWS = ("data.eval", "data.eval_limit", "data.eval_fraction")
HELD_OUT = ("data.train", "data.limit", "training.seed")
"""With data.eval_fraction these settle which rows are held out."""
MEASURE = (
    "model.name_or_path", "model.revision", "data.format", "data.prompt_template", "data.chat_template",
    "data.train_on_inputs", "data.cutoff_len", "lora.task_type",
)  # fmt: skip
# eval_runtime and eval_samples_per_second are printed to four and three digits.
SAME_COUNT = 0.02
# Percent of the evaluation rows by which runs may differ in what they were trained on.
TRAINED_ON = 5.0
# Fewer common rows than this decide nothing.
ENOUGH_ROWS = 10


@dataclass(frozen=True)
class Comparability:
    """What is known of the rows that evaluations are of.

    Attributes:
        verdict: "same", "unknown" (a log does not say) or "other".
        findings: the sentence that says so, first of all.
        rows: of each run with stored rows, by run; empty unless every run has them.
        common: hashes of the rows that all runs have, in the order of the first.
    """

    verdict: str
    findings: list[Finding]
    rows: list[dict[int, EvaluationRows]]
    common: np.ndarray


def comparability(histories: Sequence[History], names: Sequence[str], differing: Sequence[Difference]) -> Comparability:
    """Whether the evaluations may be held against each other, with the sentence that says it."""
    none = np.empty(0, "uint64")
    if len(histories) < 2:
        return Comparability("other", [], [], none)
    if len({history.task for history in histories}) > 1:
        tasks = listed(names, [history.task for history in histories])
        return Comparability("other", [_found("compare.other_tasks", "watch", listed=tasks)], [], none)
    if taught := _trained_on(histories, names):
        return Comparability("other", [taught], [], none)
    rows = [_stored(history) for history in histories]
    if all(rows):
        return _by_rows(rows, names)
    if told(histories):
        return _by_settings(histories, differing)
    return _by_counts(histories, names)


def missing(histories: Sequence[History], names: Sequence[str]) -> list[Finding]:
    """Runs that were never evaluated."""
    bare = [name for history, name in zip(histories, names, strict=True) if not len(history.evals)]
    return [_found("compare.no_evaluation", "note", names=", ".join(bare))] if bare else []


def _found(key: str, verdict: str, **values: object) -> Finding:
    return Finding("compare", verdict, key, dict(values))


def _trained_on(histories: Sequence[History], names: Sequence[str]) -> Finding | None:
    """Runs of which one knows more of its evaluation rows by heart than another, as found before they began."""
    facts = [overlap_of(history) for history in histories]
    shares = [100 * (fact[0] + fact[1]) / fact[2] if fact else 0.0 for fact in facts]
    if max(shares) - min(shares) < TRAINED_ON:
        return None
    return _found("compare.trained_on_eval", "watch", listed=listed(names, [f"{share:.0f}%" for share in shares]))


def _stored(history: History) -> dict[int, EvaluationRows]:
    """The rows by step of the evaluations that are still in the log."""
    if history.run is None:
        return {}
    logged = {int(step) for step in history.evals["step"]}
    steps = [step for step in stored_steps(history.run.path) if step in logged]
    return {step: rows for step in steps if (rows := read_rows(history.run.path, step)) is not None}


def _by_rows(rows: list[dict[int, EvaluationRows]], names: Sequence[str]) -> Comparability:
    own = [run[max(run)] for run in rows]
    common = own[0].hash[np.isin(own[0].hash, _all_have(own[1:], own[0].hash))]
    common = np.unique(common)
    counts = listed(names, [number(len(run.row)) for run in own])
    if len({run.digest for run in own}) == 1:
        return Comparability("same", [_found("compare.same_rows", "note", n=len(own[0].row))], rows, common)
    if len(common) >= ENOUGH_ROWS:
        found = _found("compare.some_rows", "watch", n=len(common), listed=counts)
        return Comparability("same", [found], rows, common)
    return Comparability("other", [_found("compare.other_rows", "watch", n=len(common), listed=counts)], [], common)


def _all_have(others: Sequence[EvaluationRows], hashes: np.ndarray) -> np.ndarray:
    for other in others:
        hashes = hashes[np.isin(hashes, other.hash)]
    return hashes


def _by_settings(histories: Sequence[History], differing: Sequence[Difference]) -> Comparability:
    held_out = any((history.number("data.eval_fraction") or 0) > 0 for history in histories)
    decisive = {*ROWS, *MEASURE, *(HELD_OUT if held_out else ())}
    keys = [difference.key for difference in differing if difference.key in decisive]
    none = np.empty(0, "uint64")
    if keys:
        return Comparability("other", [_found("compare.other_evaluation", "watch", keys=", ".join(keys))], [], none)
    return Comparability("same", [_found("compare.same_evaluation", "note")], [], none)


def _by_counts(histories: Sequence[History], names: Sequence[str]) -> Comparability:
    counts, none = [eval_rows(history) for history in histories], np.empty(0, "uint64")
    known = [count for count in counts if np.isfinite(count)]
    if len(known) == len(counts) and max(known) > (1 + SAME_COUNT) * min(known) + 1:
        values = listed(names, [number(round(count)) for count in counts])
        return Comparability("other", [_found("compare.other_count", "watch", listed=values)], [], none)
    if len(known) == len(counts):
        found = _found("compare.same_count", "undecided", n=round(median(known)))
        return Comparability("unknown", [found], [], none)
    return Comparability("unknown", [_found("compare.unknown_rows", "undecided")], [], none)


def same_measure(histories: Sequence[History], differing: Sequence[Difference]) -> bool:
    """Whether a training loss means the same in all of them: one task, one model, one way to make and mask rows."""
    same_task = len({history.task for history in histories}) == 1
    return same_task and not {difference.key for difference in differing} & {*MEASURE, "data.train"}


def eval_rows(history: History) -> float:
    """Rows of an evaluation, from its time and its rate; NaN where the log lacks them."""
    if not {"eval_runtime", "eval_samples_per_second"} <= set(history.evals.columns):
        return np.nan
    seconds, rate = (history.evals[f"eval_{name}"].to_numpy("float64") for name in ("runtime", "samples_per_second"))
    return median(seconds * rate)
