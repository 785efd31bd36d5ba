"""The rows a run trains on and is evaluated on, with what is to be said about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...instrument.messages import say
from ..config.schema import Config
from ..config.settings import with_settings
from ..console import Console
from .examples import Dataset, load_examples, split_held_out
from .overlap import SHOWN, overlap


def load_data(config: Config, tokenizer: Any, console: Console) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows, tokenized; says what was detected, left out, dropped or cut."""
    data, seed = config.data, config.training.seed
    train_data = load_examples(data.train, data, tokenizer, data.limit)
    if data.format == "auto" and data.prompt_template is None:
        console.line(say("data.detected", source=data.train, format=train_data.format))
    evaluates = config.training.eval_strategy != "no"
    eval_data = None
    if data.eval is not None and evaluates:
        same = with_format(config, train_data).data  # evaluated as it is trained, whatever other fields there are
        eval_data = load_examples(data.eval, same, tokenizer, data.eval_limit)
    if not evaluates and (data.eval is not None or data.eval_fraction > 0):
        console.warn(say("data.never_evaluated"))
    for dataset in (train_data, eval_data):
        if dataset is not None:
            report_rows(dataset, data.cutoff_len, console)
    if data.eval_fraction > 0 and evaluates:
        train_data, eval_data = split_held_out(train_data, data.eval_fraction, seed)
        eval_data = replace(eval_data, examples=eval_data.examples[: data.eval_limit])
    if eval_data is not None:
        eval_data = replace(eval_data, overlap=overlap(train_data.examples, eval_data.examples))
        report_overlap(eval_data, console)
    return train_data, eval_data


def with_format(config: Config, dataset: Dataset) -> Config:
    """The configuration with the format that was detected, which is what is recorded and resumed."""
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
        rows = ", ".join(map(str, dataset.dropped[:5])) + (" ..." if len(dataset.dropped) > 5 else "")
        console.warn(say("data.dropped", source=dataset.source, count=len(dataset.dropped), rows=rows))
    if dataset.truncated:
        console.warn(say("data.truncated", source=dataset.source, count=dataset.truncated, cutoff=cutoff_len))
