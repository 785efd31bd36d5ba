"""The first line: where the run stands, the gravest judgement, and its advice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lora_train.instrument.judge.explain import exit_code, explain, lines
from lora_train.instrument.judge.explain.finding import Finding
from lora_train.instrument.judge.explain.overall import overall

from .build import falling, history, settling

FLAT_EVALS = {"step": np.arange(10, 201, 10.0), "eval_loss": settling(20, noise=0.001)}
STOPPED = {"step": 7, "kind": "forward_overflow", "action": "stop", "rows": [1], "evidence": {"rows_alone": []}}


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ({"finished": True}, "Finished at step 50"),
        ({"finished": False}, "Not finished, so far step 50"),
        ({"incidents": [{**STOPPED, "remedies": []}], "finished": False}, "Stopped by a collapse after step 50"),
    ],
)
def test_it_says_where_the_run_stands(of, sentence):
    found = overall(history(loss=falling(50), **of), [])
    assert found.sentence("en") == f"{sentence}. Nothing is wrong and nothing needs watching."


def test_it_says_of_how_many_steps_and_of_lines_without_numbers():
    unfinished = history(loss=falling(50), finished=False)
    unfinished.planned = 200
    assert overall(unfinished, []).sentence("ko").startswith("아직 끝나지 않았습니다(200스텝 중 50스텝).")
    unfinished.numbered = False
    assert overall(unfinished, []).sentence("en").startswith("Part of a log: 50 lines without step numbers.")


def test_its_advice_is_that_of_the_gravest():
    watch = Finding("grad_norm", "watch", "explain.jagged_more", {"early": 1.0, "late": 2.0})
    wrong = Finding("loss", "wrong", "explain.loss_rose", {"first": 1.0, "last": 2.0, "lowest": 1.0, "step": 3})
    found = overall(history(loss=falling(50)), [watch, wrong])
    assert (found.verdict, found.values["topic"], found.values["step"]) == ("wrong", "loss", 3)
    assert found.hint("en") == wrong.hint("en") == "training.learning_rate (a third), training.warmup_steps (more)"
    assert found.hint("en", "axolotl") == "learning_rate (a third), warmup_steps (more)"


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [((), 0), (("note", "healthy"), 0), (("undecided",), 0), (("watch", "note"), 1), (("watch", "wrong"), 2)],
)
def test_exit_codes_for_scripts(verdicts, code):
    assert exit_code([Finding("loss", verdict, "explain.no_steps") for verdict in verdicts]) == code


def test_findings_as_json_are_plain_and_finite():
    found = explain(history(loss=np.where(np.arange(60) > 20, np.nan, 2.0), kind="log"))
    text = json.dumps([finding.as_json("ko") for finding in found], allow_nan=False)
    first = json.loads(text)[0]
    assert list(first) == ["topic", "key", "verdict", "step", "values", "change"]
    assert (first["topic"], first["verdict"], first["values"]["state"]) == (
        "overall", "wrong", "explain.state_finished",
    )  # fmt: skip


def test_the_words_of_a_classifier_are_not_those_of_a_language_model():
    classifier = history(loss=falling(60, 0.7, 0.3, 0.02), kind="trainer")
    classifier.task = "seq_cls"
    text = "\n".join(lines(classifier, explain(classifier), "en"))
    assert "guessing among k labels gives ln k" in text
    assert "a token" not in text
