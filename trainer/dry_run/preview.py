"""What a run is about to read: the first batches as text with their masks, and how long the rows are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ...instrument.messages import say
from ..config.schema import Config
from ..console import Console
from ..data.batches import Plan
from ..data.examples import Dataset, Example
from ..data.labels.labels import Labels

N_BATCHES = 2
# A piece of text longer than twice this is shown by its two ends.
SHOWN_CHARACTERS = 300
N_BARS, BAR_WIDTH = 10, 40


def show_batches(plan: Plan, rank: int, tokenizer: Any, console: Console) -> None:
    """The first two micro-batches of this process, every row with its number and what of it is trained on."""
    if plan.dataset.labels is None:
        console.line(say("dry_run.legend"))
    for number, (step, examples) in enumerate(first_batches(plan, rank), start=1):
        console.line(say("dry_run.batch", number=number, step=step, rows=len(examples)))
        for example in examples:
            n_tokens = len(example.input_ids)
            if example.labels is not None:
                values = {"row": example.row, "source": plan.dataset.source, "tokens": n_tokens}
                console.line(say("dry_run.labelled_row", label=label_text(example, plan.dataset.labels), **values))
                text = tokenizer.decode(example.input_ids.tolist(), clean_up_tokenization_spaces=False)
                console.line(_shortened(_visible(text)))
                continue
            console.line(
                say(
                    "dry_run.row",
                    row=example.row,
                    source=plan.dataset.source,
                    tokens=n_tokens,
                    supervised=example.n_supervised,
                )
            )
            console.spans([(_shortened(_visible(text)), trained) for text, trained in decoded(example, tokenizer)])


def label_text(example: Example, labels: Labels | None) -> str:
    """A row's label as it is called; of words those that have one."""
    assert labels is not None
    assert example.labels is not None
    if not labels.names:
        return f"{float(example.labels[0]):g}"
    own = example.labels[example.supervised] if example.is_tagged else example.labels
    numbers = np.flatnonzero(own) if own.dtype == np.float32 else own
    return " ".join(labels.names[number] for number in numbers) or "-"


def first_batches(plan: Plan, rank: int) -> list[tuple[int, Sequence[Example]]]:
    """(step, rows) of the first micro-batches that are not empty, at most N_BATCHES."""
    found: list[tuple[int, Sequence[Example]]] = []
    for step in range(1, plan.steps_per_epoch + 1):
        for own in plan.rows(step).own(rank):
            if own:
                found.append((step, own))
            if len(found) == N_BATCHES:
                return found
    return found


def decoded(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """The row as text in pieces that are trained on or not.

    A character whose bytes are spread over tokens on both sides of a border belongs to the piece that completes it.
    """
    ids = example.input_ids.tolist()
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    pieces, start, end = [], 0, 0
    for trained, run in groupby(example.supervised.tolist()):
        end += len(list(run))
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        stop = len(whole) if end == len(ids) else len(text.rstrip("\ufffd"))
        pieces.append((whole[start:stop], trained))
        start = stop
    return pieces


def _visible(text: str) -> str:
    """Control characters, which a terminal would obey, as their codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _shortened(text: str) -> str:
    left_out = len(text) - 2 * SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    return text[:SHOWN_CHARACTERS] + say("dry_run.left_out", count=left_out) + text[-SHOWN_CHARACTERS:]


def show_lengths(config: Config, plan: Plan, eval_data: Dataset | None, console: Console) -> None:
    """Histogram of the rows' lengths, what is cut, what is trained on, and how many steps that makes."""
    dataset = plan.dataset
    lengths = np.array([len(example.input_ids) for example in dataset.examples])
    console.line(say("dry_run.lengths", source=dataset.source, rows=len(lengths)))
    for first, last, count in bins(lengths):
        bar = "#" * math.ceil(BAR_WIDTH * count / len(lengths))
        console.line(f"  {first:>6}-{last:<6} {count:>8,}  {bar}".rstrip())
    at = int(lengths.argmax())
    console.line(
        say(
            "dry_run.longest",
            longest=int(lengths[at]),
            row=dataset.examples[at].row,
            cut=dataset.truncated,
            cutoff=config.data.cutoff_len,
        )
    )
    n_supervised = sum(example.n_supervised for example in dataset.examples)
    total = int(lengths.sum())
    if dataset.labels is None:
        console.line(say("dry_run.supervised", share=100 * n_supervised / total, supervised=n_supervised, tokens=total))
    training = config.training
    console.line(
        say(
            "dry_run.steps",
            per_epoch=plan.steps_per_epoch,
            per_step=plan.units_per_step,
            unit=unit_name(plan),
            total=plan.n_steps(training.num_train_epochs, training.max_steps),
            eval_rows=len(eval_data.examples) if eval_data else 0,
        )
    )


def unit_name(plan: Plan) -> str:
    """What a step counts, in the user's language: rows, or bins of rows."""
    return say("unit.rows" if plan.bin_tokens is None else "unit.bins")


def bins(lengths: Sequence[int] | np.ndarray) -> list[tuple[int, int, int]]:
    """(shortest, longest, rows) of at most N_BARS equal ranges from 1 to the longest row."""
    width = max(1, math.ceil(max(lengths) / N_BARS))
    counts = np.bincount((np.asarray(lengths) - 1) // width)
    return [(i * width + 1, (i + 1) * width, int(count)) for i, count in enumerate(counts)]
