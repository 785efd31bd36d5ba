"""Lines of names and numbers: `step: 10 loss: 1.2`, `Iter 10: Train loss 1.2, Learning Rate 1e-5`, `loss=1.2 lr=1e-4`,
`Epoch [1/5], Step [100/600], Loss: 1.2`, and what a progress bar carries: `10/100 [00:12<01:50, 1.2s/it, loss=1.2]`.
"""

from __future__ import annotations

import re
from itertools import pairwise

from .values import NUMBER, Record, canonical, is_known, is_step, number

_PAIR = re.compile(
    rf"([A-Za-z_][\w/.]*(?:[ -][A-Za-z_]\w*)?)\s*(?:[=:]|\s)\s*({NUMBER})(?![\w.])(?:\s*/\s*(\d[\d,]*)(?![\d/]))?"
)
_STEP_WORDS = {"step", "steps", "iter", "iteration", "global_step", "it", "batch"}
_LOSS = re.compile(r"loss\b", re.IGNORECASE)
_TOLD = re.compile(r"loss['\"]?\s*[=:]", re.IGNORECASE)
_SPLITS = {"val": "eval_", "valid": "eval_", "validation": "eval_", "eval": "eval_", "test": "test_", "train": ""}
_BAR = re.compile(r"(\d+/\d+)\s*\[[^\[\]\n]*<[^\[\]\n,]*,([^\]\n]*)\]?")
_BRACKETS = str.maketrans("[]", "  ")
_WORD = re.compile(r"[^\W\d_]+")
LONGEST = 2000
# A number alone among so many words is told, not printed; a program prints its sentence again and again.
SENTENCE, AGAIN = 5, 3


def read_pairs(text: str) -> list[tuple[int, Record]]:
    """Records and their places in the text.

    A line counts that has a loss and a step, or whose loss stands behind `=` or `:`. Of a bar the last state of a step
    counts, at the place behind it. A sentence about a loss, as people write one, is no log.
    """
    found: list[tuple[int, Record]] = []
    at, bar_before, printed = 0, "", False
    for line in text.split("\n"):
        if len(line) < LONGEST and _LOSS.search(line):
            words = " ".join(line.split())
            bar = _BAR.search(words)
            record = _record(bar.group(2) if bar else words.translate(_BRACKETS))
            if record and is_known(record):
                if bar and bar.group(1) == bar_before:
                    found.pop()
                found.append((at + len(line), record))
                printed = printed or len(record) > 1 or len(_WORD.findall(line)) < SENTENCE
                bar_before = bar.group(1) if bar else ""
        at += len(line) + 1
    if not printed and len(found) < AGAIN:
        return []
    _across_epochs([record for _, record in found])
    return found


def _record(line: str) -> Record | None:
    found: Record = {}
    step: float | None = None
    planned = epochs = ""
    for name, value, of in _PAIR.findall(line):
        words = name.lower().replace("-", "_").split()
        if words[-1] in _STEP_WORDS and step is None and value.isdigit():
            step, planned = float(value), of
        elif words[-1] in ("epoch", "epochs"):
            found["epoch"], epochs = number(value), of
        elif words[-1] == "loss" or words[-1].endswith("_loss"):
            prefix = _SPLITS.get(words[0], "") if len(words) > 1 else ""
            found.setdefault(f"{prefix}{words[-1]}", number(value))
        elif words[-1] not in ("time", "eta"):
            whole = words in (["learning", "rate"], ["grad", "norm"])
            found.setdefault("_".join(words) if whole else words[-1], number(value))
    if step is None and not _TOLD.search(line):
        return None
    if step is not None:
        found["step"] = step
        found |= {"max_steps": number(planned.replace(",", ""))} if planned else {}
    found |= {"epochs": number(epochs.replace(",", ""))} if epochs else {}
    return canonical(found)


def _across_epochs(records: list[Record]) -> None:
    """Steps that begin anew with each epoch, counted on."""
    rows = [record for record in records if is_step(record)]
    steps = [(row.get("epoch"), row.get("step"), row.get("max_steps")) for row in rows]
    known = all(isinstance(value, float) for row in steps for value in row)
    if not known or not any(b[1] <= a[1] and b[0] > a[0] for a, b in pairwise(steps)):  # type: ignore[operator]
        return
    first = min(1.0, *(row["epoch"] for row in rows))
    for record in records:
        if isinstance(record.get("epoch"), float) and "step" in record and "max_steps" in record:
            record["step"] += (record["epoch"] - first) * record["max_steps"]
            total = record.get("epochs")
            record["max_steps"] = record["max_steps"] * total if isinstance(total, float) else None
