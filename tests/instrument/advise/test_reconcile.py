"""No two pieces of advice, and none of explain's, send a reader both ways."""

from __future__ import annotations

import numpy as np
import pytest
from lora_train.instrument.advise import advise
from lora_train.instrument.advise.advice import Advice, Step
from lora_train.instrument.advise.reconcile import MOVES, asked_by_explain, moves, reconcile
from lora_train.instrument.judge.explain import Finding
from lora_train.instrument.messages import catalogue

from benchmarks.studies import draw
from benchmarks.studies.kinds import kinds

from .build import run, study

KINDS = kinds()
GO = Step(("lora-train ...",))


def test_every_key_of_its_table_is_a_sentence():
    assert MOVES.keys() - catalogue("en").keys() == set()


def test_the_stronger_keeps_its_command():
    short, long = (Advice("P4", "against", key, {}, (), GO) for key in ("advise.p4_short", "advise.p4_long"))
    bound = Advice("P6", "answered", "advise.p6_bound", {}, (), GO)
    kept = reconcile(study(run([1.0])), [bound, long])
    assert [advice.step for advice in kept] == [None, GO]
    assert [advice.step for advice in reconcile(study(run([1.0])), [bound, short])] == [GO, GO]


def test_what_explain_asks_of_the_same_run_is_not_contradicted():
    made = study(run([1.0]), judge=lambda _: [Finding("eval_loss", "note", "explain.rows_overfit")])
    assert asked_by_explain(made, ["t0"])["steps"] == -1
    advice = Advice("P6", "answered", "advise.p6_bound", {}, ("t0",), GO)
    assert reconcile(made, [advice])[0].step is None
    assert reconcile(made, [Advice("P6", "answered", "advise.p6_bound", {}, ("t9",), GO)])[0].step == GO


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("side", ["make", "twin"])
def test_advice_on_drawn_studies_never_contradicts_itself(kind, side):
    made = getattr(kind, side)(np.random.default_rng(3), 3.0)
    asked: dict[str, set[int]] = {}
    for advice in advise(made):
        for target, way in moves(advice).items():
            asked.setdefault(target, set()).add(way)
            theirs = asked_by_explain(made, advice.trials[:1])
            assert theirs.get(target, way) != -way, (advice.key, target)
    assert all(len(ways) == 1 for ways in asked.values()), asked


def test_no_advice_ever_asks_for_accumulation():
    made = draw.study(draw.with_settings(draw.grid((0, 0, 0), 2, values=draw.RATES[:3]), gradient_accumulation_steps=4),
                      np.random.default_rng(0))  # fmt: skip
    commands = [command for advice in advise(made) if (command := advice.next("en"))]
    assert commands
    assert not [command for command in commands if "accumulation" in command]
