"""Words of a log, however they are spelt."""

from __future__ import annotations

import pytest
from lora_train.instrument.judge.explain import SourceError, explain, glossary
from lora_train.instrument.judge.explain.glossary import WORDS, known_word
from lora_train.instrument.messages import catalogue
from lora_train.instrument.read.schema import STEP_COLUMNS

from .build import falling, history


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("grad_norm", "grad_norm"),
        ("train/grad_norm", "grad_norm"),
        ("eval/loss", "eval_loss"),
        ("rewards/margins", "rewards_margins"),
        ("memory/device_reserved (GiB)", "memory_device_reserved"),
        ("completions/mean_length", "completions_mean_length"),
        ("Learning Rate", "learning_rate"),
        ("eval_f1", "eval_f1"),
        ("train/loss", "loss"),
        ("train/train_loss", "train_loss"),
        ("objective/scores", "scores"),
        ("train/objective/kl", "kl"),
        ("loss/policy_avg", "policy_avg"),
        ("val/ratio", "val_ratio"),
    ],
)
def test_a_word_is_found_in_every_spelling(word, known):
    assert known_word(word) == known


def test_a_word_that_nobody_logs_gets_its_neighbours():
    with pytest.raises(SourceError, match="lsos") as raised:
        known_word("lsos")
    assert "loss" in raised.value.values["near"].split(", ")


def test_it_tells_the_value_in_this_run_and_what_was_judged():
    run = history(loss=falling(100))
    text = glossary("loss", run, explain(run), "en")
    assert text[0].startswith("loss  how surprised the model is")
    last, lowest = run.steps["loss"].iloc[-1], run.steps["loss"].min()
    assert f"last {last:.4g}" in text[1]
    assert f"from {lowest:.4g} to" in text[1]
    assert "It fell from" in text[2]
    assert glossary("kl", run, [], "ko")[1] == "  runs/x에는 이 값이 없습니다."
    assert len(glossary("kl", None, [], "en")) == 1


def test_every_column_a_run_of_ours_is_judged_by_has_a_word():
    judged = {"loss", "grad_norm", "learning_rate", "epoch", "step", "updates", "loss_scale", "tokens_per_second"}
    assert judged <= set(STEP_COLUMNS)
    assert judged <= WORDS.keys()
    assert set(WORDS.values()) <= catalogue("ko").keys()
