"""A run's rows as they stand in its data: which are copies, and how they begin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...instrument.judge.row_score import PREVIEW, Texts
from ...instrument.messages import say
from ..config.schema import Config
from ..data.examples import Example
from ..data.overlap import alike
from ..errors import UserError


def read_texts(examples: Sequence[Example], cutoff: int) -> Texts:
    """Compares all rows with each other."""
    found = alike([example.input_ids for example in examples])
    duplicate = {examples[mine].row: (examples[other].row, share) for mine, other, share in found}
    seen: dict[bytes, int] = {}
    for example in examples:  # rows too short for a run
        other = seen.setdefault(example.content(), example.row)
        if other != example.row:
            duplicate[example.row] = (other, 1.0)
            duplicate.setdefault(other, (example.row, 1.0))
    return Texts(duplicate, {example.row for example in examples if len(example.input_ids) >= cutoff})


def read_data(
    config_file: Path, aside: Callable[[str], None], trust_remote_code: bool = False
) -> tuple[Config, Any, list[Example]]:
    """The run's configuration, its tokenizer and its rows as tokens.

    Args:
        aside: told where they are not there any more; the tokenizer is None and there are no rows then.
        trust_remote_code: whether code that comes with the model may run: the user's word, never the run's.
    """
    from ..checks.own_code import without_code
    from ..checks.run_config import run_config
    from ..console import Console, quiet_libraries

    config = without_code(run_config(config_file), trust_remote_code)
    quiet_libraries()
    from ..data.load import load_data
    from ..model.load import load_tokenizer

    try:
        tokenizer = load_tokenizer(config)
        data, _ = load_data(config, tokenizer, Console(silent=True))
    except UserError as error:
        first, *others = error.problems
        aside(say("rows.no_data", what=first.error))
        if others:
            aside(say("rows.no_data_more", n=len(others)))
        if first.hint:
            aside(say("hint.line", text=first.hint))
        return config, None, []
    return config, tokenizer, list(data.examples)


def previews(examples: Sequence[Example], tokenizer: Any) -> dict[int, str]:
    """How each row begins: one line, without what moves a cursor."""
    if tokenizer is None:
        return {}
    texts = tokenizer.batch_decode([e.input_ids.tolist()[:PREVIEW] for e in examples], skip_special_tokens=True)
    return {example.row: _line(text) for example, text in zip(examples, texts, strict=True)}


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def texts_of_run(run: Path, trust_remote_code: bool = False) -> Texts | None:
    """Copies among a run's rows and how they begin; None, and a line says so, where the data cannot be read.

    Args:
        trust_remote_code: as of `read_data`.
    """
    aside = partial(print, file=sys.stderr, flush=True)
    config, tokenizer, examples = read_data(run / "config.yaml", aside, trust_remote_code)
    if not examples:
        return None
    return replace(read_texts(examples, config.data.cutoff_len), previews=previews(examples, tokenizer))
