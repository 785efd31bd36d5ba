from __future__ import annotations

import re

import pytest
from lora_train.instrument.read.eval_rows import EVALUATION_ROWS
from lora_train.instrument.read.row_log import TRAINING_ROWS
from lora_train.instrument.read.schema import (
    ADDED,
    COMPUTED,
    EXPONENTS,
    STATISTICS,
    Evaluation,
    StepLine,
    Summary,
    columns_of,
)
from lora_train.instrument.read.scores import SCORES
from lora_train.trainer.config.schema import sections

from benchmarks.docs_tables import DOCS, pages
from benchmarks.docs_tables.config import config
from benchmarks.docs_tables.numbers import numbers
from benchmarks.docs_tables.table import table


@pytest.mark.parametrize("name", pages())
def test_the_page_in_the_repository_is_the_one_that_the_code_gives(name):
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], "run: make docs-tables"


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_every_number_is_defined_once(lang):
    tables = [
        ADDED,
        EVALUATION_ROWS,
        STATISTICS,
        EXPONENTS,
        COMPUTED,
        SCORES,
        *map(columns_of, (StepLine, Evaluation, Summary)),
    ]
    names = [name for columns in tables for name in columns]
    assert len(set(names)) == len(names)
    # rows of training and of evaluation have the words for a row in common
    names += list(TRAINING_ROWS)
    defined = re.findall(r"^\| `(\w+)` \|", numbers(lang), re.M)
    assert sorted(defined) == sorted(names)
    for name in TRAINING_ROWS.keys() & EVALUATION_ROWS.keys():
        assert TRAINING_ROWS[name].unit == EVALUATION_ROWS[name].unit


def test_a_bar_in_a_cell_does_not_end_it():
    assert table([("a", "b"), ("max(|x|)", "1")]).splitlines() == ["| a | b |", "|---|---|", "| max(\\|x\\|) | 1 |"]


def test_markup_in_a_cell_is_text_but_in_code():
    cells = table([("key", "meaning"), ("a", "goes to <output_dir>-2, `x < y`")]).splitlines()[2]
    assert cells == "| a | goes to &lt;output_dir>-2, `x < y` |"


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_every_key_has_a_line_with_its_default_and_its_limits(lang):
    lines = dict(re.findall(r"^\| `(\w+)` \| (.*)$", config(lang), re.M))
    assert sum(len(section.model_fields) for section in sections().values()) == len(lines)
    assert "| `adamw_torch_fused` | `adamw_torch_fused`, `adamw_torch`, " in lines["optim"]
    assert "| `0.0` | 0 ≤ x &lt; 1 |" in lines["lora_dropout"]
    assert ("required" if lang == "en" else "필수") in lines["train"]


def test_a_note_says_when_a_key_changes_nothing():
    english = dict(re.findall(r"^\| `(\w+)` \| .* \| ([^|]*) \|$", config("en"), re.M))
    assert english["sites"] == "No effect with `instrument.enabled=false`."
    assert english["adam_beta1"] == "`training.optim` decides whether it has an effect."
    assert english["min_loss_scale"] == (
        "No effect with `training.fp16=false`. `precision.loss_scale` decides whether it has an effect."
    )
    assert english["learning_rate"] == ""
