"""A console: records in braces between progress bars and everything else that programs print; else `loss = 1.2` lines.

1%|          | 10/1000 [00:12<20:01, 1.2s/it]
{'loss': 1.934, 'grad_norm': 0.4, 'learning_rate': 9e-05, 'epoch': 0.1}
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

from .bars import find_bars, steps_beside, training_bar
from .log import Log
from .pairs import read_pairs
from .values import Record, evaluation, is_known, is_step, is_summary, number, parse

# One with braces inside stands on one line; a cut-off one must not swallow the next.
_BRACES = re.compile(r"\{[^{}\n]*(?:\{[^{}\n]*\}[^{}\n]*)+\}|\{[^{}]*\}")
_RANK = re.compile(
    r"\brank[ :=]*(\d+)|\[default(\d+)\]|\[1,(\d+)\]<std|^\s*\[?(?:worker|node|gpu)[-_: ]?(\d+)\]?\s*[|:]|^(\d+): ",
    re.IGNORECASE,
)
# Of the records whose loss says something, so many must come k times before a k-fold log is believed.
DUPLICATED, FEW = 0.8, 3
# Digits that programs print of one number differ: 1.9340 beside 1.934.
SAME = 1e-3
SETTINGS = {
    "per_device_train_batch_size": r"(?:Instantaneous batch size per device|Batch size per device)\s*=\s*(\d+)",
    "gradient_accumulation_steps": r"Gradient Accumulation steps\s*=\s*(\d+)",
}
_PLANNED = re.compile(r"(?:Total optimization steps|Total steps|total_num_steps)\s*[=:]\s*([\d,]+)", re.IGNORECASE)
_EPOCHS = re.compile(r"Num Epochs\s*=\s*(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
# `Step 10: {'loss': ...}`
_BEFORE = re.compile(r"\b(?:step|iteration|iter)\W{0,3}(\d{1,15})(?:\s*/\s*\d+)?[^\w\n{}]{0,5}$", re.IGNORECASE)
_EVERY = re.compile(r"\blogging_steps['\"]?\s*[=:]\s*['\"]?(\d+)\b")


def read_console(text: str) -> Log:
    """The records of a console, in order, with the steps that bars tell."""
    found = list(_records(text)) or read_pairs(text)
    return with_bars(text, found)


def with_bars(text: str, found: Sequence[tuple[int, Record]]) -> Log:
    """A log of records at their places in a text."""
    found = _once(_of_one_process(text, found))
    records = [record for _, record in found]
    rows = [(at, record) for at, record in found if is_step(record)]
    bars = training_bar(find_bars(text), [at for at, _ in rows])
    if any(isinstance(record.get("step"), float) and bars and record["step"] > bars[-1].total for record in records):
        bars = []  # an evaluation's
    log = Log(records, text, bars=bars)
    if bars:
        log.planned, log.reached = bars[-1].total, max(bar.n for bar in bars)
        log.epochs = bars[-1].epochs
        _number(found, rows, log)
    _banner(text, log)
    return log


def _records(text: str) -> Iterator[tuple[int, Record]]:
    for match in _BRACES.finditer(text):
        record = parse(match.group())
        if record is None or not is_known(record):
            continue
        if "step" not in record and (before := _BEFORE.search(text, max(0, match.start() - 60), match.start())):
            record["step"] = float(before.group(1))
        yield match.start(), record


def _number(found: Sequence[tuple[int, Record]], rows: Sequence[tuple[int, Record]], log: Log) -> None:
    """Steps of the bars for lines that have none; an evaluation has that of the bar before it."""
    if not rows or any("step" in record for _, record in rows):
        return
    steps = steps_beside(log.bars, [at for at, _ in rows])
    if steps is None:
        return
    for (_, record), step in zip(rows, steps, strict=True):
        record["step"] = float(step)
    places = [bar.at for bar in log.bars]
    for at, record in found:
        if not is_step(record) and not is_summary(record) and "step" not in record:
            i = bisect_right(places, at)
            record["step"] = float(log.bars[i - 1].n if i else 0)


def _of_one_process(text: str, found: Sequence[tuple[int, Record]]) -> list[tuple[int, Record]]:
    """Where lines name their process, those of the first one."""
    ranks = []
    for at, _ in found:
        line = text[max(text.rfind("\n", 0, at) + 1, at - 300) : at]
        named = [rank for match in _RANK.finditer(line) for rank in match.groups() if rank is not None]
        ranks.append(int(named[0]) if named else None)
    first = min((rank for rank in ranks if rank is not None), default=None)
    return [pair for pair, rank in zip(found, ranks, strict=True) if rank in (None, first)]


def _once(found: Sequence[tuple[int, Record]]) -> list[tuple[int, Record]]:
    """Every record once, where several processes or callbacks print each of them.

    A run that collapsed prints the same line again and again and means it; so a log counts as doubled only if its
    lines with a real loss come in groups of k.
    """
    groups: list[list[tuple[int, Record]]] = []
    for at, record in found:
        if groups and _same(groups[-1][-1][1], record):
            groups[-1].append((at, record))
        else:
            groups.append([(at, record)])
    telling = [len(group) for group in groups if group[0][1].get("loss") not in (None, 0.0)]
    k, times = Counter(telling).most_common(1)[0] if telling else (1, 0)
    k = k if len(telling) >= FEW and times >= DUPLICATED * len(telling) else 1
    kept = []
    for group in groups:
        # twice the same evaluation, its seconds included, is one; so is the last line
        size = k if is_step(group[0][1]) else len(group)
        for i in range(0, len(group), size):
            part = group[i : i + size]
            merged = {key: value for _, record in reversed(part) for key, value in record.items()}
            kept.append((part[0][0], merged))
    return kept


def _same(one: Record, other: Record) -> bool:
    """Whether all numbers that both have agree, the loss among them."""
    shared = [key for key in one if key in other]
    named = {"loss", "eval_loss", "train_runtime"} & set(shared) or set(evaluation(one)) & set(shared)
    return bool(named) and len(shared) > 1 and all(_equal(one[key], other[key]) for key in shared)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= SAME * max(abs(one), abs(other)) or (one != one and other != other)
    return one == other


def _banner(text: str, log: Log) -> None:
    """What transformers and Unsloth print before the first step."""
    if match := _PLANNED.search(text):
        log.planned = int(match.group(1).replace(",", "")[:15] or 0) or log.planned
    if match := _EPOCHS.search(text):
        log.epochs = log.epochs or float(number(match.group(1).replace(",", ""))) or None
    if len(every := set(_EVERY.findall(text))) == 1:
        log.every = int(next(iter(every))[:9]) or None
    training = {key: int(match.group(1)[:9]) for key, words in SETTINGS.items() if (match := re.search(words, text))}
    if training:
        log.config = {"training": training}
