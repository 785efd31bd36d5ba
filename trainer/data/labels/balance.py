"""What is said of labelled rows before a run: classes and their shares, and how well the tokenizer knows the text."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....instrument.messages import say
from ...console import Console
from ..dataset import Dataset
from .labels import SEVERAL, VALUE
from .load import class_counts

MAX_CLASSES = 12
# A class with a smaller share of what an even share would be is told: its F1 rests on few rows.
RARE = 0.1
# Accuracy above this can be had by always giving the commonest answer.
ONE_SIDED = 0.8
# The share of unknown tokens from which a word in fifty is lost.
UNKNOWN = 0.02


def report_labels(train: Dataset, evaluation: Dataset | None, console: Console) -> None:
    """Prints the classes with their shares, and warns of what will make a score mislead."""
    labels = train.labels
    assert labels is not None
    if labels.problem_type == VALUE:
        values = np.concatenate([example.labels for example in train.examples if example.labels is not None])
        console.line(say("labels.values", source=train.source, low=values.min(), high=values.max(),
                         mean=values.mean(), std=values.std()))  # fmt: skip
        if values.std() == 0:
            console.warn(say("labels.constant"))
        return
    counts = class_counts(train)
    n = len(train.examples) if labels.problem_type == SEVERAL else sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count:,} ({count / n:.1%})" for name, count in ordered[:MAX_CLASSES])
    more = " ..." if len(ordered) > MAX_CLASSES else ""
    key = "labels.several" if labels.problem_type == SEVERAL else "labels.classes"
    key = "labels.of_tokens" if labels.task == "token_cls" else key
    console.line(say(key, source=train.source, n=len(counts), shown=shown + more))
    if empty := [name for name, count in counts.items() if not count]:
        console.warn(say("labels.without_rows", names=", ".join(empty[:MAX_CLASSES])))
    if labels.problem_type != SEVERAL and labels.task == "seq_cls":
        _warn_of_balance(counts, n, console)
    if evaluation is not None:
        there = class_counts(evaluation)
        if lacking := [name for name, count in there.items() if not count and counts[name]]:
            console.warn(say("labels.not_evaluated", source=evaluation.source, names=", ".join(lacking[:MAX_CLASSES])))


def _warn_of_balance(counts: dict[str, int], n: int, console: Console) -> None:
    name, most = max(counts.items(), key=lambda item: item[1])
    if most / n > ONE_SIDED:
        console.warn(say("labels.one_sided", name=name, share=100 * most / n))
        return
    rare = [name for name, count in counts.items() if 0 < count < RARE * n / len(counts)]
    if rare:
        console.warn(say("labels.rare", names=", ".join(rare[:MAX_CLASSES])))


def report_coverage(dataset: Dataset, tokenizer: Any, console: Console) -> None:
    """How many tokens the tokenizer takes for a character, and which share of them it does not know."""
    ids = np.concatenate([example.input_ids for example in dataset.examples])
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    ids = ids[~np.isin(ids, list(special))]
    unknown = int((ids == tokenizer.unk_token_id).sum()) if tokenizer.unk_token_id is not None else 0
    share = unknown / max(len(ids), 1)
    per_character = len(ids) / max(dataset.n_characters, 1)
    console.line(say("labels.coverage", source=dataset.source, tokens=per_character, share=100 * share))
    if share >= UNKNOWN:
        console.warn(say("labels.unknown", share=100 * share, token=tokenizer.unk_token))
