"""Does an answer belong to its question? Each row is run through the model without its adapter, under its own question,
under OTHERS other rows' and under that of the other rows which the answer's letters fit best (questions.py).

    saved     sum of the TOKENS largest of  mean loss of a token after the others' questions - its loss after its own
    better    sum of the TOKENS largest of  its loss after its own - its loss after the one that fits, where above 0

in nats. A question that the answer belongs to makes a few of its words far less surprising: names, numbers, what was
asked for. Other rows' questions, rather than none, are what is taken away, because any question of the kind tells how
such answers read; the few tokens it helps most, because the others only add noise. And where another row's question
helps more than its own, the answer may be that row's. `python -m benchmarks.rows` prints how often this tells a swapped
answer from others, with loss and gradient norm alone beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...instrument.judge.row_score import Probed
from ..config.schema import Config
from ..console import Console
from ..data.batches import collate
from ..data.examples import Example
from ..loop.components import Weights
from ..loop.engine import Engine
from ..model.build import build_model
from ..model.load import autocast, pad_token_id
from .questions import asks, fitting, others_of, under

TOKENS, OTHERS = 5, 2
PASSES = 2 + OTHERS


def probe(
    config: Config, tokenizer: Any, examples: Sequence[Example], advance: Callable[[int], None] = lambda done: None
) -> dict[int, Probed]:
    """What their questions save the rows; left out are rows without one, or without another to hold against.

    Of a row that gives several examples, the one that belongs least to its question.

    Args:
        config: of the run; its model is loaded, and its adapter is not.
        advance: told how many rows are done.

    Raises:
        UserError: the model cannot be loaded.
    """
    engine, pad = Engine(), pad_token_id(tokenizer)
    built = build_model(config, engine.device, Weights(config, engine, Console(silent=True)))
    built.model.eval()
    longest = max((len(example.input_ids) for example in examples), default=0)
    found: dict[int, Probed] = {}

    @torch.no_grad()
    def losses(example: Example) -> np.ndarray:
        batch = collate([example], pad, built.loss.padding_free).to(engine.device)
        with autocast(config, engine.device), built.model.disable_adapter():
            return built.loss.of_tokens(batch)[2].double().cpu().numpy()

    others, fits = others_of(examples, OTHERS), _fitting(tokenizer, examples)
    for at, example in enumerate(examples):
        if others[at]:
            own = losses(example)
            under_others = [losses(under(example, asks(examples[other]), longest)) for other in others[at]]
            fit = fits[at]
            under_fit = own if fit is None else losses(under(example, asks(examples[fit]), longest))
            one = Probed(
                saved=most_of(np.mean(under_others, axis=0) - own),
                better=most_of(np.maximum(own - under_fit, 0.0)),
                fits=None if fit is None else examples[fit].row,
            )
            found[example.row] = min(found.get(example.row, one), one, key=lambda probed: probed.belongs)
        advance(at + 1)
    return found


def most_of(differences: np.ndarray) -> float:
    """The sum of the TOKENS largest; nat."""
    return float(np.sort(differences)[-TOKENS:].sum())


def _fitting(tokenizer: Any, examples: Sequence[Example]) -> list[int | None]:
    first = [len(asks(example)) for example in examples]
    questions = [e.input_ids[:n].tolist() for e, n in zip(examples, first, strict=True)]
    answers = [e.input_ids[n:].tolist() for e, n in zip(examples, first, strict=True)]
    texts = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (questions, answers))
    return fitting(examples, *texts)
