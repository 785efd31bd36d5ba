"""What a rule's answer looks like to a script and to a reader."""

from __future__ import annotations

import json
import math

from lora_train.instrument.advise.advice import VERDICTS, Advice, Step
from lora_train.instrument.advise.rules import RULES
from lora_train.instrument.judge.explain.finding import Phrase

from .build import run, study

ADVICE = Advice(
    "P3", "against", "advise.p3_vary", {"steps": 100, "most": 200, "n": 2}, ("a", "b"),
    Step(("lora-train x",), Phrase("advise.cost_run_steps", {"steps": 1200})),
)  # fmt: skip


def test_as_json():
    found = json.loads(json.dumps(ADVICE.as_json("en")))
    assert list(found) == ["rule", "verdict", "evidence", "trials", "next"]
    assert (found["rule"], found["verdict"], found["trials"]) == ("P3", "against", ["a", "b"])
    assert found["evidence"]["key"] == "advise.p3_vary"
    assert found["evidence"]["values"] == {"steps": 100, "most": 200, "n": 2}
    assert found["evidence"]["sentence"].startswith("The runs have from 100 to 200 steps")
    assert found["next"] == "lora-train x   # 1,200 steps"


def test_what_is_not_finite_is_null_and_a_phrase_its_key():
    values = {"lowest": math.nan, "hint": Phrase("advise.hint_late"), "on": True}
    advice = Advice("P4", "not answered", "advise.p15_none", values | {"n": 1})
    assert advice.as_json("en")["evidence"]["values"] == {
        "lowest": None,
        "hint": "advise.hint_late",
        "on": True,
        "n": 1,
    }
    assert advice.next("en") is None
    assert advice.verdict in VERDICTS


def test_a_reader_of_korean_gets_korean():
    assert ADVICE.sentence("ko").startswith("실행 길이가 100스텝부터")
    assert ADVICE.next("ko") == "lora-train x   # 1,200스텝"


def test_several_commands_stand_on_lines_of_their_own_and_of_many_the_first():
    cost = Phrase("advise.cost_runs_steps", {"runs": 8, "steps": 12})
    two, eight = (Step(tuple(f"run {i}" for i in range(n)), cost) for n in (2, 8))
    assert two.text("en") == "run 0\nrun 1   # 8 such runs of 12 steps"
    assert eight.text("en").split("\n")[5:] == ["run 5   # 2 more like these; 8 such runs of 12 steps"]


def folders(rule: str, made) -> list[str]:
    """The folders of the runs that a rule asks for, and what is set besides."""
    (found,) = RULES[rule](made)
    assert found.step is not None
    return [command.partition("runs/t")[2].partition("training.")[2] for command in found.step.commands]


def test_every_run_that_is_needed_has_its_own_command_and_folder():
    rates = study(*(run([1.5] * 4, settings={"training.learning_rate": rate}) for rate in (1e-4, 2e-4, 4e-4)))
    constant = "lr_scheduler_type=constant lora.lora_dropout=0 training.weight_decay=0 training.learning_rate="
    name = "training.output_dir=runs/t0-lora_dropout-0-weight_decay-0-learning_rate-"
    assert folders("P1", rates) == [f"{constant}{r} {name}{r}" for r in ("1e-4", "3e-4", "3.3e-5")]
    assert folders("P14", rates) == [
        f"seed={seed} training.output_dir=runs/t{i}-seed-{seed}" for i in range(3) for seed in (2, 3)
    ]
    batch = "training.per_device_train_batch_size"
    batches = study(*(run([1.5] * 4, settings={batch: size}) for size in (8, 16)))
    found = [words.partition(" ")[0] for words in folders("P9", batches)]
    assert found == ["learning_rate=3e-4", "learning_rate=3.3e-5"] * 2


def test_the_next_value_beyond_0_is_not_0_again():
    """A share of 0 has no multiple: the run proposed would be the one that is there."""
    rate = "training.warmup_ratio"
    two = study(
        run([2.0, 1.5, 1.2, 1.1, 1.0], settings={rate: 0.0}), run([2.0, 1.9, 1.8, 1.8, 1.8], settings={rate: 0.03})
    )
    edges = [advice for advice in RULES["P2"](two) if advice.values["key"] == rate]
    assert [(advice.key, advice.next("en")) for advice in edges] == [("advise.p2_few", None)]
