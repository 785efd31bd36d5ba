"""Keys that do not go with model.task, and metrics that no evaluation gives."""

from __future__ import annotations

from typing import Any

import pytest
from lora_train.trainer.checks.own_code import own_word
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.checks.task_checks import task_problems
from lora_train.trainer.config.aliases import ours_for
from lora_train.trainer.config.schema import Config
from lora_train.trainer.errors import UserError


def errors(**sections: Any) -> list[str]:
    sections["model"] = {"name_or_path": "x", **sections.get("model", {})}
    sections["data"] = {"train": "x", **sections.get("data", {})}
    return [found.error for found in task_problems(Config.model_validate(sections), lambda _: "c.yaml")]


CLASSIFIER = {"model": {"task": "seq_cls"}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({**CLASSIFIER, "lora": {"task_type": "TOKEN_CLS"}}, "model.task=seq_cls and lora.task_type=TOKEN_CLS"),
        ({**CLASSIFIER, "data": {"format": "alpaca"}}, "data.format is for language models"),
        ({**CLASSIFIER, "data": {"packing": True}}, "data.packing is for language models"),
        ({**CLASSIFIER, "data": {"prompt_template": "{a}"}}, "data.prompt_template is for language models"),
        ({"data": {"labels": ["a", "b"]}}, "data.labels is for classifiers"),
        ({"training": {"class_weights": "balanced"}}, "training.class_weights is for classifiers"),
        ({"training": {"compute_metrics": "m:f"}}, "training.compute_metrics is for classifiers"),
        ({"model": {"problem_type": "regression"}}, "model.problem_type is for classifiers"),
        ({"training": {"metric_for_best_model": "accuracy"}}, "metric_for_best_model=accuracy is not measured"),
        ({**CLASSIFIER, "training": {"metric_for_best_model": "acuracy"}}, "there are loss, accuracy, f1"),
        ({**CLASSIFIER, "training": {"class_weights": {"a": 0}}}, "the weight of a must be above 0"),
        (
            {"model": {"task": "seq_cls", "problem_type": "regression"}, "training": {"class_weights": {"a": 1}}},
            "has no meaning for numbers",
        ),
    ],
)
def test_what_is_refused(sections, said):
    assert any(said in error for error in errors(**sections)), errors(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        CLASSIFIER,
        {"lora": {"task_type": "SEQ_CLS"}},
        {**CLASSIFIER, "training": {"metric_for_best_model": "eval_f1", "class_weights": {0: 1.5}}},
        {**CLASSIFIER, "training": {"metric_for_best_model": "pearson"}},
        {**CLASSIFIER, "training": {"metric_for_best_model": "mine", "compute_metrics": "m:f"}},
        {"training": {"metric_for_best_model": "eval_token_accuracy"}},
    ],
)
def test_what_is_taken(sections):
    assert errors(**sections) == []


@pytest.mark.parametrize("word", ["SEQ_CLS", "seq_cls", "TaskType.SEQ_CLS", "sequence_classification"])
def test_spellings(word):
    assert ours_for("lora.task_type", word) == "SEQ_CLS"
    assert ours_for("model.task", word) == "seq_cls"


@pytest.mark.parametrize("key", ["model", "lora"])
def test_either_key_sets_the_other(key):
    value = {"model": {"task": "token_cls"}, "lora": {"task_type": "TOKEN_CLS"}}[key]
    sections = {"model": {"name_or_path": "x"}, "data": {"train": "x"}}
    config = Config.model_validate({**sections, key: {**sections.get(key, {}), **value}})
    assert (config.model.task, config.lora.task_type) == ("token_cls", "TOKEN_CLS")
    assert Config.model_validate(config.model_dump()) == config


def test_code_in_a_run_folder_runs_at_the_users_word_alone(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model: {name_or_path: a/b, task: seq_cls}\ndata: {train: a/b}\ntraining: {compute_metrics: m:f}\n")
    config = read_config(file)
    assert own_word(config, file, []) == config
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"training\.compute_metrics=m:f"):
        own_word(config, file, [])
    assert own_word(config, file, ["training.compute_metrics=m:f"]) == config
