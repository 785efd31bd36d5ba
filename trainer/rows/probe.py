"""Does an answer belong to its question? Each row is run twice through the model without its adapter.

    saved = sum of the TOKENS largest of  loss of a token after another row's question - its loss after its own   (nat)

A question that the answer belongs to makes a few of its words far less surprising: names, numbers, what was asked for.
Another row's question, rather than none, is what is taken away, because any question of the kind tells how such answers
read; the few tokens it helps most, because the others only add noise. `python -m benchmarks.rows` prints how often that
tells a swapped answer from others, with loss and gradient norm alone beside it.
"""

from __future__ import annotations

import math
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

TOKENS = 5


def probe(
    config: Config, tokenizer: Any, examples: Sequence[Example], advance: Callable[[int], None] = lambda done: None
) -> dict[int, float]:
    """What its question saves each row, in nats; left out are rows without one, or without another to hold against.

    Of a row that gives several examples, the least that one of them is saved.

    Args:
        config: of the run; its model is loaded, and its adapter is not.
        advance: told how many rows are done.

    Raises:
        UserError: the model cannot be loaded.
    """
    engine, pad = Engine(), pad_token_id(tokenizer)
    built = build_model(config, engine.device, Weights(config, engine, Console(silent=True)))
    built.model.eval()
    found: dict[int, float] = {}

    @torch.no_grad()
    def losses(example: Example) -> np.ndarray:
        batch = collate([example], pad, built.loss.padding_free).to(engine.device)
        with autocast(config, engine.device), built.model.disable_adapter():
            return built.loss.of_tokens(batch)[2].double().cpu().numpy()

    for done, (example, other) in enumerate(zip(examples, under_another_question(examples), strict=True), start=1):
        if other is not None:
            own = saved(losses(example), losses(other))
            found[example.row] = min(own, found.get(example.row, math.inf))
        advance(done)
    return found


def saved(own: np.ndarray, other: np.ndarray) -> float:
    """Of an answer's tokens, what the TOKENS whose losses differ most cost less after its own question; nat."""
    return float(np.sort(other - own)[-TOKENS:].sum())


def under_another_question(examples: Sequence[Example]) -> list[Example | None]:
    """Each row with what stands before another row's first answer in place of its own; None where there is none.

    Which other row is drawn, the same at every call. A question that would make a row longer than any of them is cut
    at its beginning.
    """
    longest = max((len(example.input_ids) for example in examples), default=0)
    first = [int(np.argmax(example.supervised)) for example in examples]
    asking = [at for at in np.random.default_rng(0).permutation(len(examples)) if first[at] > 1]
    questions = {at: examples[at].input_ids[: first[at]] for at in asking}
    found: list[Example | None] = [None] * len(examples)
    for place, at in enumerate(asking):
        later = (asking[(place + k) % len(asking)] for k in range(1, len(asking)))
        others = (questions[one] for one in later if examples[one].row != examples[at].row)
        question = next((other for other in others if not np.array_equal(other, questions[at])), None)
        if question is not None:
            rest, mask = examples[at].input_ids[first[at] :], examples[at].supervised[first[at] :]
            question = question[max(0, len(question) + len(rest) - longest) :]
            ids = np.concatenate([question, rest]).astype(rest.dtype)
            found[at] = Example(examples[at].row, ids, np.concatenate([np.zeros(len(question), bool), mask]))
    return found
