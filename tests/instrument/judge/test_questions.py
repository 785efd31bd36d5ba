"""What users ask of a log, each answered by a sentence that is printed: the histories are those of the askers.

Numbers tell the questions apart.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lora_train.instrument.judge.explain import History, explain, glossary, lines
from lora_train.instrument.messages import LANGUAGES

from .explain.build import history, settling

RANDOM = np.random.default_rng(0)


def axolotl() -> History:
    """650 of 1,200 steps of a 10.7B LoRA; two evaluations of more than an hour; memory from 30 to 33.9 GiB."""
    i = np.arange(650)
    norm = 2.8 * np.exp(0.2 * RANDOM.standard_normal(650))
    norm[210] = 6.02
    made = history(
        kind="log",
        finished=False,
        loss=0.45 + 0.75 * np.exp(-i / 120) + 0.05 * RANDOM.standard_normal(650),
        grad_norm=norm,
        learning_rate=np.minimum(i / 60, 1) * 2e-4 * (1 - i / 1300),
        epoch=i / 400,
        memory_reserved_gib=np.where(i > 300, 33.9, 30.0),
        evals={
            "step": [300.0, 600.0],
            "eval_loss": [0.52, 0.47],
            "eval_runtime": [4027.65, 4027.65],
            "eval_samples_per_second": [0.309, 0.309],
            "eval_steps_per_second": [0.154, 0.154],
        },
    )
    made.trainer, made.planned = "axolotl", 1200
    elapsed = 30.0 * (i + 1) + 4027 * (i > 300) + 4027 * (i > 600)
    bar = {"step": i + 1.0, "elapsed_seconds": elapsed, "eta_seconds": elapsed / (i + 1) * (1199 - i)}
    made.progress = pd.DataFrame(bar)
    return made


def imdb() -> History:
    """A BERT classifier, batch 8, a line every 200 of 9,375 steps; an evaluation loss that wobbles."""
    at = np.arange(46)
    evals = {
        "step": 200.0 * (at + 1),
        "eval_loss": 0.30 + 0.03 * RANDOM.standard_normal(46),
        "eval_accuracy": 0.92 - 0.06 * np.exp(-at / 3) + 0.004 * RANDOM.standard_normal(46),
        "eval_runtime": np.full(46, 100.0),
        "eval_samples_per_second": np.full(46, 62.5),
    }
    made = history(
        kind="trainer",
        coarse=200,
        loss=0.19 + 0.14 * np.exp(-at / 0.7) + 0.01 * RANDOM.standard_normal(46),
        grad_norm=15 * np.exp(0.9 * RANDOM.standard_normal(46)),
        learning_rate=2e-5 * (1 - at / 47),
        epoch=(at + 1) * 200 / 3125,
        evals=evals,
    )
    made.task, made.trainer = "seq_cls", "transformers"
    return made


def koalpaca() -> History:
    """Loss 1.9, then 0.0 from the hundredth line with the rate standing still."""
    i = np.arange(130)
    dead = i >= 100
    return history(
        kind="trainer",
        coarse=10,
        loss=np.where(dead, 0.0, 1.9 + 0.05 * RANDOM.standard_normal(130)),
        grad_norm=np.where(dead, np.nan, 0.4),
        learning_rate=np.where(dead, 6.7e-5, 1e-4 * (1 - np.minimum(i, 100) / 300)),
        epoch=(i + 1) / 500,
    )


def stuck() -> History:
    """A loss that stays near 1.9 after a tenth of the data, cut off far before its planned end."""
    i = np.arange(200)
    made = history(
        kind="trainer",
        coarse=10,
        loss=settling(200, first=3.0, last=1.9),
        learning_rate=1e-4 * (1 - i / 500),
        epoch=0.09 * (i + 1) / 200,
        finished=False,
    )
    made.planned = 50_000
    return made


def in_stairs() -> History:
    """Three epochs, a drop at each border."""
    epoch = np.arange(1, 121) / 40
    loss = 3 - 0.5 * np.ceil(epoch - 1e-9) + 0.02 * RANDOM.standard_normal(120)
    return history(kind="trainer", loss=loss, epoch=epoch)


RUNS = {"axolotl": axolotl, "imdb": imdb, "koalpaca": koalpaca, "stuck": stuck, "in stairs": in_stairs}
ANSWERS = [
    (1, "axolotl", "how surprised the model is by the tokens"),
    (4, "axolotl", "No value is the goal"),
    (5, "axolotl", "It fell from"),
    (6, "axolotl", "with Adam and clipping it does not set the size of an update"),
    (7, "axolotl", "no size is good or bad as such"),
    (8, "axolotl", "the highest is 6.02 at step 211"),
    (10, "axolotl", "Highest 0.00"),
    (13, "axolotl", "takes 1:07:08"),
    (14, "axolotl", "0.309 rows/s (eval_samples_per_second)"),
    (15, "axolotl", "(eval_steps_per_second)"),
    (16, "axolotl", "GiB"),
    (18, "axolotl", "The bar first foresaw 10:0"),
    (19, "axolotl", "step 650 of 1,200"),
    (3, "imdb", "accuracy"),
    (41, "imdb", "wobble"),
    (46, "imdb", "One line in 200 steps"),
    (50, "imdb", "Accuracy"),
    (67, "koalpaca", "the Trainer's filter prints as loss 0"),
    (68, "koalpaca", "It is not overfitting"),
    (69, "koalpaca", "Next time it may be another step"),
    (71, "koalpaca", "The learning rate stands still"),
    (70, "koalpaca", "sdpa attention and fp32 for the module that overflows"),
    (73, "koalpaca", "the weights are not"),
    (74, "koalpaca", "layers and rows are not in it"),
    (57, "stuck", "The run has not finished; its last step so far is 2,000"),
    (75, "stuck", "Learning has not ended for that"),
    (76, "in stairs", "rows seen again are partly known by heart"),
]


@pytest.mark.parametrize(("row", "run", "sentence"), ANSWERS)
def test_a_question_is_answered_by_a_printed_sentence(row, run, sentence):
    made = RUNS[run]()
    assert sentence in "\n".join(lines(made, explain(made), "en")), row


@pytest.mark.parametrize(
    ("row", "word", "sentence"),
    [
        (2, "loss", "A training loss that rises is not overfitting"),
        (3, "accuracy", "It and the loss need not agree"),
        (9, "learning_rate", "how far an update may move a weight"),
        (11, "epoch", "More epochs do not mean more accuracy"),
        (12, "eval_loss", "the same loss on rows that are not trained on"),
        (17, "host_memory_gib", "main memory of the process"),
        (33, "epoch", "only evaluation tells what that is worth"),
        (34, "warmup_steps", "counts steps"),
        (37, "gradient_accumulation_steps", "It makes nothing faster"),
        (38, "batch_size", "faster only until the card is full"),
        (54, "eval_steps_per_second", "It compares the speed of two cards"),
        (55, "eval_steps_per_second", "a log cannot tell"),
    ],
)
def test_a_word_is_explained(row, word, sentence):
    assert sentence in glossary(word, None, [], "en")[0], row


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("run", RUNS)
def test_nothing_false_is_said_to_the_askers(run, lang):
    """The stories' own false sentences: no verdict on a wobble, no unit of tokens for a classifier."""
    made = RUNS[run]()
    found = {finding.key.removeprefix("explain.") for finding in explain(made)}
    false = {
        "imdb": {"eval_rose", "overfitting", "loss_flat"},
        "axolotl": {"underfitting", "eval_rare"},
        "koalpaca": {"loss_flat"},
        "stuck": {"plateau", "loss_flat"},
        "in stairs": {"loss_flat", "plateau"},
    }
    assert found & false[run] == set()
    if run == "imdb":
        assert "a token" not in "\n".join(lines(made, explain(made), "en"))
