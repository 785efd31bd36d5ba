"""Values that YAML can hold and a run cannot use: each is named before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.data.sources import open_source

from .test_read_config import MINIMAL, errors, write


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.seed", 2**64),
        ("training.data_seed", 2**63),
        ("training.max_steps", 10**26),
        ("training.num_train_epochs", 1e300),
        ("training.per_device_train_batch_size", 2**63),
        ("training.gradient_accumulation_steps", 2**31),
        ("lora.r", 10**20),
        ("data.cutoff_len", 10**20),
        ("instrument.probe_every", 10**20),
        ("data.skip_rows", [3, 10**20]),
    ],
)
def test_a_whole_number_that_nothing_can_count_to_is_named(tmp_path, key, value):
    (error,) = errors(write(tmp_path, MINIMAL), f"{key}={value}")
    assert error.startswith(f"command line: {key} must be at most ")
    assert error.split("at most ")[1].split(",")[0] in ("2147483647", "9007199254740991")


def test_large_seeds_are_seeds(tmp_path):
    assert read_config(write(tmp_path, MINIMAL), [f"training.seed={2**53 - 1}"]).training.seed == 2**53 - 1


@pytest.mark.parametrize("key", ["lora.r", "training.max_steps", "training.learning_rate", "training.warmup_steps"])
def test_true_is_no_number(tmp_path, key):
    (error,) = errors(write(tmp_path, MINIMAL), f"{key}=true")
    assert "number, not True" in error


def test_true_is_a_value_where_flags_are(tmp_path):
    config = read_config(write(tmp_path, MINIMAL), ["instrument.rows=true", "training.fp16=1"])
    assert (config.instrument.rows, config.training.fp16) == (True, True)


def test_a_pattern_that_is_none_is_named(tmp_path):
    (error,) = errors(write(tmp_path, MINIMAL), "lora.target_modules='((q_proj'")
    assert error.startswith("command line: lora.target_modules is no regular expression: ((q_proj (")


@pytest.mark.parametrize("key", ["model.name_or_path", "data.train", "data.chat_template", "training.output_dir"])
def test_the_home_of_nobody_is_a_path_that_is_not_there(tmp_path, key):
    """Path("~name/x").expanduser() raises RuntimeError where nobody is called so."""
    read = [*(["data.format=messages"] if key == "data.chat_template" else []), f"{key}=~nobody-here/x.jsonl"]
    if key == "training.output_dir":
        read_config(write(tmp_path, MINIMAL), read)  # a folder of that name is made
        return
    assert errors(write(tmp_path, MINIMAL), *read)
    assert open_source("~nobody-here/x.jsonl").files == (Path("~nobody-here/x.jsonl"),)


def test_a_section_may_take_over_another_by_yamls_merge_key(tmp_path):
    text = yaml.safe_dump(MINIMAL) + "lora: &small {r: 4, lora_alpha: 3}\n"
    merged = text + "training: {<<: {max_steps: 7, save_steps: 9}, save_steps: 5}\n"
    training = read_config(write(tmp_path, merged)).training
    assert (training.max_steps, training.save_steps) == (7, 5)


@pytest.mark.parametrize(
    ("training", "what"), [("{<<: 5}", "expected a mapping"), ("{max_steps: 1, max_steps: 2}", "given twice")]
)
def test_a_merge_of_no_keys_and_a_key_given_twice_are_said(tmp_path, training, what):
    (error,) = errors(write(tmp_path, yaml.safe_dump(MINIMAL) + f"training: {training}\n"))
    assert what in error


@pytest.mark.parametrize("name", ["a\0b", "runs/\0"])
def test_a_folder_no_system_has_a_name_for(tmp_path, name):
    (error,) = errors(write(tmp_path, MINIMAL | {"training": {"output_dir": name}}))
    assert "training.output_dir" in error
