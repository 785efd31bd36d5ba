"""make demo's promise: a question of the training data is answered rightly by the adapter and not without it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from lora_train.instrument.read.store import read_metrics

from ..conftest import DATA, ROOT

EVAL_DATA = DATA.with_name("koalpaca_mini_eval.jsonl")


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_data_is_what_the_readme_says():
    train, held_out = rows(DATA), rows(EVAL_DATA)
    assert len(train) >= 200
    assert len(held_out) >= 20
    assert all(set(row) == {"instruction", "output"} for row in train + held_out)
    assert all(re.search("[가-힣]", row["instruction"] + row["output"]) for row in train + held_out)
    lengths = sorted(len(row["output"]) for row in train)
    assert lengths[0] <= 12
    assert lengths[-1] >= 500
    questions = [row["instruction"] for row in train + held_out]
    assert len(set(questions)) == len(questions)
    # data.limit=32 takes the short ones
    assert max(len(row["output"]) for row in train[:32]) <= 25


@pytest.fixture(scope="module")
def demo() -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "examples/demo.py"], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_answer_holds_the_key_word_only_after_training(demo):
    assert demo.returncode == 0, demo.stdout + demo.stderr
    answers = dict(re.findall(r"^(question|before|after|reference) +(.*)$", demo.stdout, re.M))
    first = rows(DATA)[0]
    assert (answers["question"], answers["reference"]) == (first["instruction"], first["output"])
    assert "서울" in answers["after"]
    assert "서울" not in answers["before"]


def test_it_ends_with_where_the_adapter_is_and_what_to_try_next(demo):
    adapter = re.search(r"^adapter    (\S+)$", demo.stdout, re.M)
    assert adapter is not None
    run = (ROOT / adapter[1]).parent
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert re.search(r"^next       \.venv/bin/lora-train --config examples/koalpaca-mini.yaml", demo.stdout, re.M)
    losses = [row["loss"] for row in read_metrics(run) if "loss" in row]
    assert len(losses) == 50
    assert losses[-1] < 0.1 < 1.0 < losses[0]
