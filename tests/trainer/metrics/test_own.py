"""The user's own function: found, called as transformers calls it, and told when it fails."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from lora_train.trainer.config.schema import Config
from lora_train.trainer.errors import UserError
from lora_train.trainer.metrics.own import own_function, own_scores
from lora_train.trainer.metrics.scores import Answers

MODULE = """
def gap(p):
    return {"gap": abs(p.predictions).max() - p.label_ids.sum(), "eval_named": 1}

def broken(p):
    return p.predictions["x"]

CONSTANT = 3
"""
ANSWERS = Answers(np.array([[1.0, -5.0], [2.0, 0.0]], np.float32), np.array([1, 0]), [1, 1])


def config(name: str | None) -> Config:
    training = {} if name is None else {"compute_metrics": name}
    model = {"name_or_path": "x", "task": "seq_cls"}
    return Config.model_validate({"model": model, "data": {"train": "x"}, "training": training})


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_metrics_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_metrics_of_a_test", None)


def test_the_function_is_found_in_the_folder_and_called():
    function = own_function(config("own_metrics_of_a_test:gap"))
    assert function is not None
    assert own_scores(function, "gap", ANSWERS, of_tokens=False) == {"gap": 4.0, "named": 1.0}


def test_none_is_asked_for():
    assert own_function(config(None)) is None


@pytest.mark.parametrize(
    ("name", "what"), [("no_such_module_x:f", "No module"), ("own_metrics_of_a_test:f", "no attribute"),
                       ("own_metrics_of_a_test:CONSTANT", "int")]
)  # fmt: skip
def test_what_is_no_function_is_told(name, what):
    with pytest.raises(UserError, match=what):
        own_function(config(name))


def test_a_function_that_fails_is_named():
    function = own_function(config("own_metrics_of_a_test:broken"))
    assert function is not None
    with pytest.raises(UserError, match="own_metrics_of_a_test:broken failed"):
        own_scores(function, "own_metrics_of_a_test:broken", ANSWERS, of_tokens=False)


def test_words_come_padded_with_minus_100():
    seen = {}

    def function(p):
        seen.update(predictions=p.predictions, labels=p.label_ids)
        return {}

    logits = np.arange(6, dtype=np.float32).reshape(3, 2)
    own_scores(function, "f", Answers(logits, np.array([1, 0, 1]), [1, 2]), of_tokens=True)
    assert seen["labels"].tolist() == [[1, -100], [0, 1]]
    assert seen["predictions"].tolist() == [[[0, 1], [-100, -100]], [[2, 3], [4, 5]]]
