"""The rows a run trains on and is evaluated on, with what is to be said about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...instrument.messages import say
from ..config.schema import Config
from ..config.settings import with_settings
from ..console import Console
from ..errors import UserError, problem
from .examples import Dataset, load_examples
from .labels.balance import report_coverage, report_labels
from .labels.load import Reading, load_labelled, weighted, with_labels
from .overlap import SHOWN, overlap
from .sources import source_name

MOST_NAMES = 8


def load_data(
    config: Config, tokenizer: Any, console: Console, own_names: tuple[str, ...] = ()
) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows, tokenized; says what was detected, left out, dropped or cut.

    Args:
        own_names: labels that the base model's own head has, whose order is kept where they are those of the rows.
    """
    data, seed = config.data, config.training.seed
    evaluates = config.training.eval_strategy != "no"
    if config.is_classifier:
        train_data, eval_data, cutoff = _labelled(config, tokenizer, evaluates, own_names)
    else:
        train_data, eval_data = _supervised(config, tokenizer, evaluates, console)
        cutoff = data.cutoff_len
    if not evaluates and (data.eval is not None or data.eval_fraction > 0):
        console.warn(say("data.never_evaluated"))
    for dataset in (train_data, eval_data):
        if dataset is not None:
            report_rows(dataset, cutoff, console)
    if data.eval_fraction > 0 and evaluates:
        train_data, eval_data = split_held_out(train_data, data.eval_fraction, seed)
        eval_data = replace(eval_data, examples=eval_data.examples[: data.eval_limit])
    if eval_data is not None:
        eval_data = replace(eval_data, overlap=overlap(train_data.examples, eval_data.examples))
        report_overlap(eval_data, console)
    require_rows_left(data.skip_rows, train_data, data.limit is not None)
    if train_data.labels is not None:
        report_labels(train_data, eval_data, console)
        report_coverage(train_data, tokenizer, console)
        resolved = with_labels(config, train_data)
        train_data = weighted(train_data, resolved)
        eval_data = None if eval_data is None else weighted(eval_data, resolved)
    return train_data, eval_data


def _supervised(config: Config, tokenizer: Any, evaluates: bool, console: Console) -> tuple[Dataset, Dataset | None]:
    """Rows of text of which a part is trained on."""
    data = config.data
    train_data = load_examples(data.train, data, tokenizer, data.limit)
    if data.format == "auto" and data.prompt_template is None:
        console.line(say("data.detected", source=source_name(data.train), format=train_data.format))
    if data.eval is None or not evaluates:
        return train_data, None
    same = with_format(config, train_data).data  # evaluated as it is trained, whatever other fields there are
    return train_data, load_examples(data.eval, same, tokenizer, data.eval_limit)


def _labelled(
    config: Config, tokenizer: Any, evaluates: bool, own_names: tuple[str, ...]
) -> tuple[Dataset, Dataset | None, int]:
    """Rows with labels, and the tokens a row may have."""
    data, longest = config.data, min(config.data.cutoff_len, tokenizer.model_max_length)
    reading = Reading(config, tokenizer, longest, own_names=own_names)
    train_data = load_labelled(data.train, reading, data.limit)
    if data.eval is None or not evaluates:
        return train_data, None, longest
    same = replace(reading, labels=train_data.labels)
    return train_data, load_labelled(data.eval, same, data.eval_limit), longest


def require_rows_left(skip_rows: Sequence[int], train_data: Dataset, limited: bool) -> None:
    """Refuses data.skip_rows that names a row which is not there, or leaves none to train on.

    Args:
        skip_rows: the rows.
        train_data: the others.
        limited: data.limit has left rows out already.

    Raises:
        UserError: see above.
    """
    if beyond := not limited and sorted(row for row in set(skip_rows) if row >= train_data.n_rows):
        raise UserError(problem("data.no_such_row", rows=listed(beyond), count=train_data.n_rows))
    if all(example.row in set(skip_rows) for example in train_data.examples):
        raise UserError(problem("data.skips_all", source=train_data.source))


def listed(values: Sequence[Any]) -> str:
    """The first few, and that there are more."""
    return ", ".join(map(str, values[:5])) + (" ..." if len(values) > 5 else "")


def with_format(config: Config, dataset: Dataset) -> Config:
    """The configuration with the format or the labels that were found, which is what is recorded and resumed."""
    if config.is_classifier:
        return with_labels(config, dataset)
    if config.data.format != "auto" or config.data.prompt_template is not None:
        return config
    return with_settings(config, {"data.format": dataset.format})


def report_overlap(dataset: Dataset, console: Console) -> None:
    """Says which evaluation rows are training rows too, and what that means."""
    found = dataset.overlap
    if not found:
        return
    values = {"exact": len(found.exact), "near": len(found.near), "total": found.n_eval}
    pairs = [*found.exact, *found.near]
    rows = ", ".join(f"{mine}={other}" for mine, other in pairs[:SHOWN]) + (" ..." if len(pairs) > SHOWN else "")
    console.warn(say("data.overlap", rows=rows, share=100 * len(pairs) / found.n_eval, **values))


def report_rows(dataset: Dataset, cutoff_len: int, console: Console) -> None:
    """Says which rows of a source are not trained on as they are."""
    if dataset.n_skipped:
        console.warn(say("data.skipped", source=dataset.source, count=dataset.n_skipped))
        for fault in dataset.skipped:
            console.line(say("data.skipped_row", fault=fault))
    if dataset.dropped:
        rows = listed(dataset.dropped)
        console.warn(say("data.dropped", source=dataset.source, count=len(dataset.dropped), rows=rows))
    if dataset.truncated:
        console.warn(say("data.truncated", source=dataset.source, count=dataset.truncated, cutoff=cutoff_len))
    report_notes(dataset, console)


def report_notes(dataset: Dataset, console: Console) -> None:
    """Says which fields are not used, and which rows are not written as they stand; each once."""
    unused = [dict(values)["field"] for (key, values), _ in dataset.notes if key == "data.not_used"]
    if unused:
        console.line(say("data.not_used", source=dataset.source, fields=", ".join(unused)))
    unknown = [(dict(values)["role"], count) for (key, values), count in dataset.notes if key == "data.unknown_speaker"]
    if unknown:
        most = sorted(unknown, key=lambda one: -one[1])
        named = [f"{role} ({n:,})" for role, n in most[:MOST_NAMES]] + ["..."] * (len(most) > MOST_NAMES)
        console.warn(say("data.unknown_speaker", source=dataset.source, roles=", ".join(named)))
    for (key, values), count in dataset.notes:
        if key == "data.read_as":
            pairs = ", ".join(f"{ours}={theirs}" for ours, theirs in values)
            console.line(say("data.read_as", source=dataset.source, pairs=pairs))
        elif key not in ("data.not_used", "data.unknown_speaker"):
            tell = console.warn if key == "data.no_end" else console.line
            tell(say(key, source=dataset.source, count=count, **dict(values)))


def split_held_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Holds out a share of the rows for evaluation: (train, held out), each in source order."""
    order = list(dict.fromkeys(example.row for example in dataset.examples))  # examples of one row stay together
    random.Random(f"held-out-{seed}").shuffle(order)
    n_held_out = max(1, round(fraction * len(order)))
    if n_held_out >= len(order):
        raise UserError(problem("data.fraction_takes_all", fraction=fraction, rows=len(order)))
    held_out = set(order[:n_held_out])
    parts = [[e for e in dataset.examples if (e.row in held_out) is wanted] for wanted in (False, True)]
    return replace(dataset, examples=parts[0]), Dataset(
        dataset.source, parts[1], format=dataset.format, labels=dataset.labels
    )
