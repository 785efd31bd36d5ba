"""From a source of rows to tokens and a mask that says which of them are trained on.

    sources.py -> formats.py, conversations.py -> masks.py -> cache.py
    rows               text and spans         tokens      flat arrays on disk

Rows keep the 0-based index they had in the source, bad ones and those without a target included; nothing here imports
torch.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from ...instrument.messages import language
from ..config.schema import DataSection
from ..errors import Problem, UserError, problem
from .cache import Packed, cache_key, load_packed, save_packed, tokenizer_hash
from .conversations import ChatFormat, find_template
from .formats import (
    CHATS,
    DETECTION_ROWS,
    FORMATS,
    Format,
    Rendered,
    custom_format,
    detect,
    printable,
    require_object,
)
from .masks import tokenize
from .overlap import Overlap
from .sources import BadRow, Source, Where, open_source

IGNORE_INDEX = -100
MAX_BAD_ROWS_SHOWN = 5
# rows rendered and tokenized at a time: offsets are Python objects, 20 times the size of the tokens
CHUNK = 1000
CUSTOM = "prompt_template"


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
        format: a name of data.format, or "prompt_template".
        n_skipped: number of bad rows left out (data.on_bad_row: skip).
        skipped: what was wrong with the first of them.
        overlap: of evaluation rows, what they have in common with the training rows.
    """

    source: str
    examples: Sequence[Example]
    dropped: Sequence[int] = ()
    truncated: int = 0
    format: str = ""
    n_skipped: int = 0
    skipped: Sequence[str] = ()
    overlap: Overlap | None = None

    def fingerprint(self) -> str:
        """16 hex digits that change with any token, mask or row index."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(f"{example.row} {len(example.input_ids)} ".encode())
            digest.update(example.input_ids.tobytes() + example.supervised.tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def row_hashes(self) -> np.ndarray:
        """uint64 [rows] in the order of the source: each changes with the tokens and the mask of its row alone."""
        ordered = sorted(self.examples, key=lambda example: example.row)
        parts = (f"{len(e.input_ids)} ".encode() + e.input_ids.tobytes() + e.supervised.tobytes() for e in ordered)
        return np.array([int.from_bytes(hashlib.sha256(part).digest()[:8], "little") for part in parts], np.uint64)


def load_examples(source: str, data: DataSection, tokenizer: Any, limit: int | None = None) -> Dataset:
    """Reads, checks, tokenizes and masks a source, or takes what an earlier start has kept of it.

    Args:
        source: data.train or data.eval.
        data: format, cutoff_len, mask rule, what to do with bad rows, whether to keep the tokens.
        tokenizer: a fast transformers tokenizer.
        limit: use only the first rows.

    Raises:
        UserError: rows that cannot be used, by file and line; or no row with a supervised token.
    """
    origin = open_source(source)
    key = _cache_key(origin, data, tokenizer, limit) if data.cache else None
    packed = load_packed(key) if key is not None else None
    if packed is None:
        packed = _tokenized(origin, data, tokenizer, limit)
        if key is not None:
            save_packed(key, packed)
    ends = packed.offsets
    examples = [
        Example(int(row), packed.input_ids[start:end], packed.supervised[start:end])
        for row, start, end in zip(packed.rows, ends[:-1], ends[1:], strict=True)
    ]
    dropped = packed.dropped.tolist()
    return Dataset(source, examples, dropped, packed.truncated, packed.format, packed.n_skipped, packed.skipped)


def _cache_key(origin: Source, data: DataSection, tokenizer: Any, limit: int | None) -> str:
    shown = data.on_bad_row == "skip"  # the file's name and the language are in what is kept of skipped rows
    is_chat = data.prompt_template is None and (data.format == "auto" or data.format in CHATS)
    return cache_key(
        {
            "content": _readable(origin),
            "kinds": [path.suffix.lower() for path in origin.files],
            "format": data.format,
            "prompt_template": data.prompt_template,
            "chat_template": find_template(data.chat_template, tokenizer) if is_chat and data.chat_template else None,
            "tokenizer": tokenizer_hash(tokenizer),
            "train_on_inputs": data.train_on_inputs,
            "cutoff_len": data.cutoff_len,
            "limit": limit,
            "on_bad_row": [origin.name, language()] if shown else None,
            "versions": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        }
    )


def _readable(origin: Source) -> str:
    try:
        return origin.content_hash()
    except OSError as error:
        raise UserError(problem("data.unreadable", source=origin.name, what=error.strerror or error)) from error


class _BadRows:
    """What is wrong with which rows: the first few in words, all of them counted."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Problem] = []

    def add(self, bad: BadRow, where: Where) -> None:
        self.count += 1
        if self.count <= MAX_BAD_ROWS_SHOWN:
            self.first += bad.problems(where)

    def error(self, *also: Problem) -> UserError:
        more = self.count - MAX_BAD_ROWS_SHOWN
        return UserError(*also, *self.first, *([problem("data.more_bad_rows", count=more)] if more > 0 else []))


def _tokenized(origin: Source, data: DataSection, tokenizer: Any, limit: int | None) -> Packed:
    rows = itertools.islice(origin.rows(), limit)
    opening = list(itertools.islice(rows, DETECTION_ROWS))
    if not opening:
        raise UserError(problem("data.empty", source=origin.name))
    name = CUSTOM if data.prompt_template is not None else data.format
    if name == "auto":
        name = detect([row for _, row in opening])
        if name is None:
            raise _unknown_fields(origin, opening, rows)
    form = _format(name, data, tokenizer)
    bad, kept, dropped, truncated = _BadRows(), [], [], 0
    rendered = _rendered(itertools.chain(opening, rows), form, bad)
    while chunk := list(itertools.islice(rendered, CHUNK)):
        texts = [text for _, text in chunk]
        if bad.count and data.on_bad_row == "error":
            continue  # the rest is read for its errors only
        tokens = tokenize(texts, tokenizer, data.train_on_inputs, is_chat=name in CHATS)
        for (index, _), (ids, supervised) in zip(chunk, tokens, strict=True):
            truncated += len(ids) > data.cutoff_len
            example = Example(index, ids[: data.cutoff_len], supervised[: data.cutoff_len])
            (kept if example.n_supervised else dropped).append(example)
    if bad.count and data.on_bad_row == "error":
        raise bad.error()
    if bad.count and not kept and not dropped:
        raise bad.error(problem("data.all_bad", source=origin.name))
    if not kept:
        raise UserError(problem("data.nothing_supervised", source=origin.name, cutoff=data.cutoff_len))
    return Packed(
        np.concatenate([example.input_ids for example in kept]),
        np.concatenate([example.supervised for example in kept]),
        np.cumsum([0, *(len(example.input_ids) for example in kept)], dtype=np.int64),
        np.array([example.row for example in kept], np.int64),
        np.array([example.row for example in dropped], np.int64),
        truncated,
        name,
        bad.count,
        tuple(fault.error for fault in bad.first),
    )


def _rendered(
    rows: Iterable[tuple[Where, Any]], form: Format | ChatFormat, bad: _BadRows
) -> Iterator[tuple[int, Rendered]]:
    for index, (where, row) in enumerate(rows):
        try:
            yield index, form.render(row)
        except BadRow as fault:
            bad.add(fault, where)


def _format(name: str, data: DataSection, tokenizer: Any) -> Format | ChatFormat:
    if data.prompt_template is not None:
        return custom_format(data.prompt_template)
    if name in CHATS:
        return ChatFormat(name, find_template(data.chat_template, tokenizer), tokenizer.special_tokens_map)
    return FORMATS[name]


def _unknown_fields(
    origin: Source, opening: Sequence[tuple[Where, Any]], rest: Iterable[tuple[Where, Any]]
) -> UserError:
    """No row fits any format: because all are broken, or because their fields have other names."""
    found = ", ".join(dict.fromkeys(str(field) for _, row in opening if isinstance(row, dict) for field in row))
    if found:
        return UserError(problem("data.no_format", source=origin.name, found=printable(found)))
    bad = _BadRows()
    for where, row in itertools.chain(opening, rest):
        try:
            require_object(row)
        except BadRow as fault:
            bad.add(fault, where)
    return bad.error() if bad.count else UserError(problem("data.no_format", source=origin.name, found="-"))


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
    return replace(dataset, examples=parts[0]), Dataset(dataset.source, parts[1], format=dataset.format)
