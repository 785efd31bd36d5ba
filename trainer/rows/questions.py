"""Answers under other rows' questions: which others a row is held against, and its tokens behind one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..data.examples import Example

# Letters in a row by which an answer is held against questions: they know no language, and half a word is enough.
LETTERS = 3
# Runs of letters that more than one in so many questions have are the template's.
COMMON = 20


def asks(example: Example) -> np.ndarray:
    """The tokens before a row's first answer; int32 [tokens]."""
    return example.input_ids[: int(np.argmax(example.supervised))]


def others_of(examples: Sequence[Example], n: int) -> list[list[int]]:
    """For each row n others by their place, or fewer where there are no more, whose questions are not its own.

    Drawn, the same at every call. Rows without a question get none and are nobody's other.
    """
    asking = [at for at in np.random.default_rng(0).permutation(len(examples)).tolist() if len(asks(examples[at])) > 1]
    found: list[list[int]] = [[] for _ in examples]
    for place, at in enumerate(asking):
        for k in range(1, len(asking)):
            other = asking[(place + k) % len(asking)]
            if is_another(examples[at], examples[other]):
                found[at].append(other)
                if len(found[at]) == n:
                    break
    return found


def is_another(example: Example, other: Example) -> bool:
    """Whether another row asks something else."""
    return example.row != other.row and not np.array_equal(asks(example), asks(other))


def fitting(examples: Sequence[Example], questions: Sequence[str], answers: Sequence[str]) -> list[int | None]:
    """For each row the other row, by its place, whose question has most letters in common with its answer.

        sum over runs of letters in both of ln(rows / questions that have it), over 1 + sqrt(runs in the question)

    Args:
        examples: whose questions and answers they are.
        questions, answers: as text; an empty question is nobody's.
    """
    runs = [_runs(question) for question in questions]
    having: dict[str, list[int]] = {}
    for at, own in enumerate(runs):
        for run in own:
            having.setdefault(run, []).append(at)
    most = max(len(examples) // COMMON, 2)
    places = {run: np.array(own) for run, own in having.items() if len(own) <= most}
    size = 1 + np.sqrt([len(own) for own in runs])
    found: list[int | None] = []
    for example, answer in zip(examples, answers, strict=True):
        both = [run for run in _runs(answer) if run in places]
        weights = [np.full(len(places[run]), math.log(len(examples) / len(places[run]))) for run in both]
        if not both:
            found.append(None)
            continue
        scores = np.bincount(np.concatenate([places[r] for r in both]), np.concatenate(weights), len(examples)) / size
        best = (at for at in np.argsort(-scores, kind="stable").tolist() if scores[at] > 0)
        found.append(next((at for at in best if is_another(example, examples[at])), None))
    return found


def under(example: Example, question: np.ndarray, longest: int) -> Example:
    """The row with another question before its first answer.

    Args:
        question: int32 [tokens], cut at its beginning where the row would be longer than `longest` tokens.
    """
    first = len(asks(example))
    rest, mask = example.input_ids[first:], example.supervised[first:]
    question = question[max(0, len(question) + len(rest) - longest) :]
    ids = np.concatenate([question, rest]).astype(rest.dtype)
    return Example(example.row, ids, np.concatenate([np.zeros(len(question), bool), mask]))


def _runs(text: str) -> set[str]:
    """Runs of LETTERS letters and digits; what is neither is a space, and cases are one."""
    text = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    return {text[at : at + LETTERS] for at in range(len(text) - LETTERS + 1)}
