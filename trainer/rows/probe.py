"""Does an answer belong to its question? Each row is run twice through the model without its adapter.

    ratio = mean loss of the answer after its question / mean loss of the answer alone

A question that the answer belongs to makes the answer less surprising, and the ratio small. `python -m benchmarks.rows`
prints how often that tells a swapped answer from others, with loss and gradient norm alone beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..config.schema import Config
from ..console import Console
from ..data.batches import collate
from ..data.examples import Example
from ..loop.components import Weights
from ..loop.engine import Engine
from ..model.build import build_model
from ..model.load import autocast, pad_token_id


def probe(
    config: Config, tokenizer: Any, examples: Sequence[Example], advance: Callable[[int], None] = lambda done: None
) -> dict[int, float]:
    """The ratio of each row; a row without a question is left out.

    Args:
        config: of the run; its model is loaded, and its adapter is not.
        advance: told how many rows are done.

    Raises:
        UserError: the model cannot be loaded.
    """
    engine, pad = Engine(), pad_token_id(tokenizer)
    built = build_model(config, engine.device, Weights(config, engine, Console(silent=True)))
    built.model.eval()
    opening = opening_token(tokenizer)
    found: dict[int, float] = {}

    @torch.no_grad()
    def loss(example: Example) -> float:
        batch = collate([example], pad, built.loss.padding_free).to(engine.device)
        with autocast(config, engine.device), built.model.disable_adapter():
            return float(built.loss(batch)[0]) / example.n_supervised

    for done, example in enumerate(examples, start=1):
        alone = without_question(example, opening)
        if alone is not None:
            above, below = loss(example), loss(alone)
            found[example.row] = above / below if below > 0 else float("nan")
        advance(done)
    return found


def opening_token(tokenizer: Any) -> int:
    """What stands before an answer that has no question: the token that texts begin with, or end with."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return 0


def without_question(example: Example, opening: int) -> Example | None:
    """The tokens that are trained on, behind the opening; None where nothing else is in the row."""
    answer = example.input_ids[example.supervised]
    if len(answer) + 1 >= len(example.input_ids):
        return None
    ids = np.concatenate([[opening], answer]).astype(example.input_ids.dtype)
    return Example(example.row, ids, np.arange(len(ids)) > 0)
