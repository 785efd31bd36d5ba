"""The rows of a work, in a file that every contender reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .work import ROOT, Work

TEXT = ROOT / "examples" / "data" / "koalpaca_mini.jsonl"

# Tokens of 64 rows, skewed as KoAlpaca's are: many short ones, a few long ones. Drawn once from a log-normal
# distribution of median 85 (sigma 0.75), cut to 20 and 400; padded in batches of 8 a little over half is padding.
LENGTHS = (
    83, 73, 42, 20, 142, 100, 35, 146, 296, 167, 174, 45, 109, 351, 28, 254, 158, 33, 103, 97, 240, 20, 63, 84, 20, 107,
    66, 32, 145, 400, 57, 188, 75, 75, 132, 80, 26, 67, 36, 50, 301, 49, 83, 68, 153, 205, 104, 66, 80, 110, 84, 38, 25,
    101, 103, 20, 53, 149, 21, 216, 283, 219, 164, 31,
)  # fmt: skip
# What of a row is the question.
PROMPT_SHARES = (0.20, 0.25, 0.30, 0.35, 0.40)
STRIDE = 997  # characters between the beginnings of two rows
CHARACTERS_PER_TOKEN = 8  # no tokenizer here makes longer tokens of this text on average


def write_rows(path: Path, work: Work, n_rows: int, tokenizer: Any) -> None:
    """Rows of plain text, each longer than `length` in tokens; or questions and answers of LENGTHS tokens."""
    texts = [json.loads(line) for line in TEXT.read_text(encoding="utf-8").splitlines()]
    words = " ".join(f"{row['instruction']} {row['output']}" for row in texts)
    with path.open("w", encoding="utf-8") as file:
        for index in range(n_rows):
            if work.answers_only:
                row = question_and_answer(words, index, tokenizer)
            else:
                row = {"text": excerpt(words, index, work.length)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def excerpt(words: str, index: int, n_tokens: int) -> str:
    """Text of at least that many tokens, another one for every index, going on at the beginning after the end."""
    size, start = CHARACTERS_PER_TOKEN * n_tokens, (index * STRIDE) % len(words)
    while len(words) < start + size:
        words += " " + words
    return words[start : start + size]


def question_and_answer(words: str, index: int, tokenizer: Any) -> dict[str, str]:
    """A row of about LENGTHS[index] tokens, the end-of-text token included.

    Text that is cut is not tokenized quite as it was before, so a row may be a few tokens off. It is the same row for
    every contender.
    """
    length = LENGTHS[index % len(LENGTHS)] - 1
    text = excerpt(words, index, length)
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    n_prompt = max(1, round(PROMPT_SHARES[index % len(PROMPT_SHARES)] * length))
    middle, end = ends[n_prompt - 1], ends[length - 1]
    return {"prompt": text[:middle], "completion": text[middle:end]}
