"""From rows of text to tokens and a mask that says which of them are trained on.

    koalpaca   ### 질문: {instruction}\n\n### 답변: {output}<end of text>
    alpaca     Stanford Alpaca's prompt, with or without its input
    text       {text}<end of text>, every token trained on

A token is supervised when its characters reach into the answer, so a token that straddles the border between
prompt and answer is. The space before the answer belongs to the answer, because that is where byte-pair
tokenizers put it. Rows keep the 0-based index they had in the source; nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..instrument.messages import say
from .config import DataSection
from .errors import UserError, problem
from .read_config import is_path

IGNORE_INDEX = -100
MAX_BAD_ROWS_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One row as tokens.

    Attributes:
        row: 0-based index in the source as read.
        input_ids: int32 [length].
        supervised: bool [length]; whether the token is a target. The first token never is: nothing predicts it.
    """

    row: int
    input_ids: np.ndarray
    supervised: np.ndarray

    @property
    def n_supervised(self) -> int:
        return int(self.supervised.sum())


@dataclass(frozen=True)
class Dataset:
    """The tokenized rows of one source.

    Attributes:
        source: the name the user gave.
        examples: rows that have at least one supervised token.
        dropped: source indices of the rows that have none.
        truncated: number of rows cut at cutoff_len.
    """

    source: str
    examples: Sequence[Example]
    dropped: Sequence[int] = ()
    truncated: int = 0

    def fingerprint(self) -> str:
        """16 hex digits that change with any token, mask or row index."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(f"{example.row} {len(example.input_ids)} ".encode())
            digest.update(example.input_ids.tobytes() + example.supervised.tobytes())
        return digest.hexdigest()[:16]


def koalpaca_prompt(row: dict[str, str]) -> tuple[str, str]:
    """KoAlpaca's template as (prompt, answer)."""
    return f"### 질문: {row['instruction']}\n\n### 답변:", f" {row['output']}"


def alpaca_prompt(row: dict[str, str]) -> tuple[str, str]:
    """Stanford Alpaca's template as (prompt, answer)."""
    if row.get("input"):
        opening = (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
        )
        body = f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}"
    else:
        opening = (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        )
        body = f"### Instruction:\n{row['instruction']}"
    return f"{opening}{body}\n\n### Response:\n", row["output"]


def text_prompt(row: dict[str, str]) -> tuple[str, str]:
    """Plain text: no prompt, all of it trained on."""
    return "", row["text"]


@dataclass(frozen=True)
class Format:
    """A template and the fields it reads."""

    template: Callable[[dict[str, str]], tuple[str, str]]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


FORMATS = {
    "koalpaca": Format(koalpaca_prompt, ("instruction", "output")),
    "alpaca": Format(alpaca_prompt, ("instruction", "output"), ("input",)),
    "text": Format(text_prompt, ("text",)),
}


def read_rows(source: str, limit: int | None = None) -> list[tuple[str, Any]]:
    """Reads a .jsonl file or a hub dataset's train split.

    Returns:
        (where, row) pairs, `where` being what a message calls the row ("data.jsonl line 3").

    Raises:
        UserError: the file cannot be read, or lines are not JSON.
    """
    rows = list(_jsonl_rows(source, limit) if is_path(source) else _hub_rows(source, limit))
    if not rows:
        raise UserError(problem("data.empty", source=source))
    return rows


def _jsonl_rows(source: str, limit: int | None) -> Iterator[tuple[str, Any]]:
    bad, count = [], 0
    try:
        lines = Path(source).expanduser().read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(problem("config.not_utf8", file=source, byte=error.start)) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if limit is not None and count >= limit:
            break
        count += 1
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            bad.append(problem("data.not_json", source=source, line=number, what=error.msg))
            continue
        yield say("data.line", source=source, line=number), row
    _raise_bad(bad)


def _hub_rows(source: str, limit: int | None) -> Iterator[tuple[str, Any]]:
    import datasets  # 2 s; only needed for the hub

    try:
        rows = datasets.load_dataset(source, split="train")
    except Exception as error:  # the library raises a dozen types for "no such data set" and "no network"
        raise UserError(problem("data.hub", source=source, what=str(error).split("\n")[0])) from error
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    for index, row in enumerate(rows):
        yield say("data.row", source=source, row=index), row


def _raise_bad(bad: list) -> None:
    if not bad:
        return
    shown = bad[:MAX_BAD_ROWS_SHOWN]
    if len(bad) > len(shown):
        shown.append(problem("data.more_bad_rows", count=len(bad) - len(shown)))
    raise UserError(*shown)


def load_examples(source: str, data: DataSection, tokenizer, limit: int | None = None) -> Dataset:
    """Reads, checks, tokenizes and masks a source.

    Args:
        source: data.train or data.eval.
        data: template, cutoff_len and mask rule.
        tokenizer: a fast transformers tokenizer.
        limit: use only the first rows.

    Raises:
        UserError: rows that cannot be used, by file and line; or no row with a supervised token.
    """
    form = FORMATS[data.format]
    rows = read_rows(source, limit)
    _raise_bad([found for where, row in rows for found in _row_problems(where, row, form)])
    pairs = [form.template({**dict.fromkeys(form.optional, ""), **row}) for _, row in rows]
    examples, dropped, truncated = [], [], 0
    for index, (ids, supervised) in enumerate(tokenize(pairs, tokenizer, data.train_on_inputs)):
        truncated += len(ids) > data.cutoff_len
        example = Example(index, ids[: data.cutoff_len], supervised[: data.cutoff_len])
        if example.n_supervised:
            examples.append(example)
        else:
            dropped.append(index)
    if not examples:
        raise UserError(problem("data.nothing_supervised", source=source, cutoff=data.cutoff_len))
    return Dataset(source, examples, dropped, truncated)


def _row_problems(where: str, row: Any, form: Format) -> Iterator:
    if not isinstance(row, dict):
        yield problem("data.not_object", where=where, kind=type(row).__name__)
        return
    for field in form.required:
        if field not in row:
            found = ", ".join(map(str, row)) or "-"
            yield problem("data.no_field", where=where, field=field, found=found)
        elif not isinstance(row[field], str):
            yield problem("data.not_text", where=where, field=field, kind=type(row[field]).__name__)
        elif not row[field].strip():
            yield problem("data.empty_field", where=where, field=field)
        elif not row[field].isprintable() and _has_lone_surrogate(row[field]):
            yield problem("data.not_unicode", where=where, field=field)


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def tokenize(
    pairs: Sequence[tuple[str, str]], tokenizer, train_on_inputs: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and mask of each (prompt, answer), end-of-text token included.

    Yields:
        input_ids int32 [length] and supervised bool [length].
    """
    texts = [prompt + answer for prompt, answer in pairs]
    encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False)
    for (prompt, _), ids, offsets in zip(pairs, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        border = 0 if train_on_inputs else len(prompt)
        # special tokens have the empty span (0, 0) and are not targets
        supervised = [end > max(border, start) for start, end in offsets]
        if tokenizer.eos_token_id is not None:
            if not ids or ids[-1] != tokenizer.eos_token_id:
                ids, supervised = [*ids, tokenizer.eos_token_id], [*supervised, True]
            supervised[-1] = True
        if supervised:
            supervised[0] = False
        yield np.array(ids, np.int32), np.array(supervised, bool)


def split_held_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Holds out a share of the rows for evaluation: (train, held out), each in source order."""
    order = list(range(len(dataset.examples)))
    random.Random(f"held-out-{seed}").shuffle(order)
    n_held_out = max(1, round(fraction * len(order)))
    if n_held_out >= len(order):
        raise UserError(problem("data.fraction_takes_all", fraction=fraction, rows=len(order)))
    held_out = set(order[:n_held_out])
    parts = [
        [example for index, example in enumerate(dataset.examples) if (index in held_out) is wanted]
        for wanted in (False, True)
    ]
    train = Dataset(dataset.source, parts[0], dataset.dropped, dataset.truncated)
    return train, Dataset(dataset.source, parts[1])
