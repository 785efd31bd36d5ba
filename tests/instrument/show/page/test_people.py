"""Numbers and settings as people write them, and pages without the paths of who made them."""

from __future__ import annotations

import math

import pytest
from lora_train.instrument.show.page.people import both, number, run_name, setting, without_paths


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"), (10210.0, "10,210"), (10210.4, "10,210"), (0.02, "0.02"), (6e-5, "6e-5"),
        (1.6666667e-6, "1.667e-6"), (4.6598, "4.66"), (0, "0"), (-0.5, "-0.5"), (None, "–"), (math.nan, "–"),
        (math.inf, "∞"), (100.0, "100"), (123.456, "123.5"), (2.5e16, "2.5e16"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (False, "false"), (None, "–"), ([], "–"), ({}, "–"), (["a", 1], "a, 1"), (1e-4, "1e-4"),
        (0.0123456789, "0.01234568"),
        ({"min_lr": 0.0, "on": True}, "min_lr: 0, on: true"), ("no", "no"),
    ],
)  # fmt: skip
def test_settings_have_no_python_in_them(value, text):
    assert setting(value) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/kim/models/llama", "…/llama"),
        ("model=/home/kim/models/llama, then", "model=…/llama, then"),
        ("file:///home/kim/data.jsonl", "…/data.jsonl"),
        ("~/secret/data.jsonl", "…/data.jsonl"),
        ("C:\\Users\\kim\\data.jsonl is", "…/data.jsonl is"),
        ("runs/koalpaca", "runs/koalpaca"),
        ("https://huggingface.co/org/model", "https://huggingface.co/org/model"),
        ("org/model and tokens/s/GPU", "org/model and tokens/s/GPU"),
        ("/", "/"),
        ("/home/kim and C:\\Users\\kim", "~ and ~"),
        ("</script><img src=x>", "</script><img src=x>"),
    ],
)
def test_paths_of_the_machine_are_cut_to_their_last_part(text, clean):
    assert without_paths([{"key": (text, 1)}]) == [{"key": [clean, 1]}]


def test_a_run_is_called_by_its_folder_and_a_log_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert run_name(".") == "mine"
    assert run_name("/home/kim/runs/a/") == "a"
    assert run_name("/home/kim/runs/a/trainer_state.json") == "a"
    assert run_name("/home/kim/runs/a.log + /home/kim/runs/b.log") == "a.log + b.log"
    assert run_name("/home/kim/training.log") == "training.log"


def test_both_languages_are_filled():
    assert both("page.step_n", step=3) == {"en": "step 3", "ko": "3스텝"}
