"""Whether data, tokenizer and model fit each other, from the model's config alone, before weights are loaded.

Every token of a row needs a row of the embedding table, and every place in it a position. On a GPU a token past the
table is an assertion that names nothing, so it is said here, with what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...instrument.messages import say
from ..config.schema import Config
from ..console import Console
from ..data.examples import Dataset
from ..errors import Problem, UserError, problem
from .load import read_model_config

MAX_TOKENS_SHOWN = 5
# Families whose positions are a table that was learned, or is as long as the longest text: there is none past its end.
TABLE_OF_POSITIONS = frozenset(
    ("biogpt", "codegen", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt", "opt", "xglm")
)


def require_fit(config: Config, tokenizer: Any, datasets: Iterable[Dataset | None], console: Console) -> int | None:
    """Refuses rows that the model has no embedding or no position for; says where they are longer than its context.

    Returns:
        rows of the embedding table, None where the model's config does not say.

    Raises:
        UserError: see above; or the model's config cannot be read.
    """
    model = read_model_config(config).get_text_config()
    n_rows = getattr(model, "vocab_size", None)
    n_rows = n_rows if isinstance(n_rows, int) and n_rows > 0 else None
    if n_rows is not None and config.model.resize_embeddings:
        n_rows = max(n_rows, len(tokenizer))
    limit = getattr(model, "max_position_embeddings", None)
    for dataset in datasets:
        if dataset is None:
            continue
        if n_rows is not None:
            _require_embeddings(dataset, tokenizer, n_rows)
        if isinstance(limit, int) and limit > 0:
            _require_positions(dataset, str(model.model_type), limit, console)
    return n_rows


def require_answerable(config: Config, tokenizer: Any, dataset: Dataset) -> None:
    """Refuses rows for an adapter that is trained already as `require_fit` does: no setting makes room for them.

    Raises:
        UserError: see there.
    """
    try:
        require_fit(config, tokenizer, [dataset], Console(silent=True))
    except UserError as error:
        hint = say("fit.trained")
        raise UserError(*(Problem(one.error, hint if one.hint else "") for one in error.problems)) from None


def _require_embeddings(dataset: Dataset, tokenizer: Any, n_rows: int) -> None:
    beyond: dict[int, set[int]] = {}
    for example in dataset.examples:
        if int(example.input_ids.max(initial=0)) >= n_rows:
            for token in np.unique(example.input_ids[example.input_ids >= n_rows]).tolist():
                beyond.setdefault(token, set()).add(example.row)
    if not beyond:
        return
    count = len(set().union(*beyond.values()))
    values = {"source": dataset.source, "tokens": named(beyond, tokenizer), "count": count, "rows": n_rows}
    raise UserError(problem("fit.no_embedding", needed=len(tokenizer), **values))


def named(tokens: Iterable[int], tokenizer: Any) -> str:
    """The first few tokens, each with its id."""
    own = sorted(set(tokens))
    shown = [f"{tokenizer.convert_ids_to_tokens(token)} ({token})" for token in own[:MAX_TOKENS_SHOWN]]
    return ", ".join(shown) + (" ..." if len(own) > MAX_TOKENS_SHOWN else "")


def _require_positions(dataset: Dataset, family: str, limit: int, console: Console) -> None:
    longer = [example for example in dataset.examples if len(example.input_ids) > limit]
    if not longer:
        return
    longest = max(longer, key=lambda example: len(example.input_ids))
    values = {"source": dataset.source, "count": len({example.row for example in longer}), "limit": limit}
    values |= {"longest": len(longest.input_ids), "row": longest.row}
    if family in TABLE_OF_POSITIONS:
        raise UserError(problem("fit.no_position", **values))
    console.warn(say("fit.long_rows", **values))
