from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_train.trainer.checks.no_effect import without_effect
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.config.names import is_path
from lora_train.trainer.config.schema import Config, sections
from lora_train.trainer.errors import Problem, UserError

from ...conftest import DATA, ROOT

MINIMAL = {"model": {"name_or_path": "owner/model"}, "data": {"train": str(DATA), "format": "koalpaca"}}


def write(folder: Path, content: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def errors(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        read_config(path, overrides)
    return [problem.error.replace(str(path), "FILE") for problem in raised.value.problems]


def hints(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        read_config(path, overrides)
    return [problem.hint for problem in raised.value.problems]


def test_defaults_are_those_of_training_arguments(tmp_path):
    training = read_config(write(tmp_path, MINIMAL)).training
    assert (training.learning_rate, training.num_train_epochs, training.max_grad_norm) == (5e-5, 3.0, 1.0)
    assert (training.per_device_train_batch_size, training.logging_steps, training.save_steps) == (8, 500, 500)
    assert (training.lr_scheduler_type, training.optim, training.seed) == ("linear", "adamw_torch_fused", 42)


def test_override_wins_over_the_file_and_reads_yaml(tmp_path):
    path = write(tmp_path, MINIMAL | {"lora": {"r": 4}})
    config = read_config(path, ["lora.r=16", "training.learning_rate=1e-4", "lora.target_modules=[a, b]"])
    assert (config.lora.r, config.training.learning_rate, config.lora.target_modules) == (16, 1e-4, ["a", "b"])


def test_unquoted_no_is_the_word_no(tmp_path):
    path = write(tmp_path, yaml.safe_dump(MINIMAL) + "training: {eval_strategy: no, save_strategy: no}\n")
    assert read_config(path).training.eval_strategy == "no"


def test_all_problems_are_reported_at_once(tmp_path):
    content = {
        "model": {"name_or_path": "./nowhere"},
        "lora": {"rnak": 8, "r": "eight", "lora_dropout": 1.5},
        "data": {"train": "nowhere.jsonl"},
        "training": {"fp16": True, "bf16": True, "eval_strategy": "steps"},
        "trainig": {},
    }
    assert errors(write(tmp_path, content), "data.limit=0") == [
        "FILE: trainig is not a known section",
        "FILE: lora.r must be a whole number, not eight",
        "FILE: lora.lora_dropout must be less than 1, not 1.5",
        "FILE: lora.rnak is not a known key",
        "command line: data.limit must be at least 1, not 0",
        "FILE: training.fp16 and training.bf16 are both true",
        "FILE: training.eval_strategy asks for evaluation, but there is nothing to evaluate on",
        "FILE: data.train: there is no file nowhere.jsonl",
        "FILE: model.name_or_path: there is no file or folder ./nowhere",
    ]


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("lora.rnak", "lora.r"),
        ("lora.rank", "lora.r"),
        ("lora.lora_alfa", "lora.lora_alpha"),
        ("training.micro_batch_size", "training.per_device_train_batch_size"),
        ("training.num_epochs", "training.num_train_epochs"),
        ("training.sequence_len", "data.cutoff_len"),
        ("training.fp_16", "training.fp16"),
        ("data.cutof_len", "data.cutoff_len"),
        ("data.max_eval_samples", "data.eval_limit"),
        ("data.dataset_name", "data.train"),
        ("data.chat_template_jinja", "data.chat_template"),
    ],
)
def test_unknown_key_suggests_what_was_meant(tmp_path, key, guess):
    (hint,) = hints(write(tmp_path, MINIMAL), f"{key}=1")
    assert hint.startswith(f"did you mean {guess}? known keys: ")


@pytest.mark.parametrize(
    ("section", "key", "value", "error"),
    [
        ("training", "max_steps", 1.5, "must be a whole number, not 1.5"),
        ("training", "learning_rate", "fast", "must be a number, not fast"),
        ("training", "learning_rate", float("inf"), "must be a finite number, not inf"),
        ("training", "fp16", "maybe", "must be true or false, not maybe"),
        ("training", "max_grad_norm", -1, "must be at least 0, not -1"),
        (
            "training",
            "optim",
            "adam",
            "paged_adamw_32bit, sgd, adafactor, not adam",
        ),
        ("lora", "target_modules", 3, "must be a list of module names, a regular expression or all-linear, not 3"),
        ("lora", "target_modules", [], "is empty: nothing would be trained"),
        ("precision", "loss_scale", "dynamo", "must be dynamic or a positive number, not dynamo"),
        ("model", "name_or_path", "", "is empty"),
        ("training", "lr_scheduler_type", "cosine_", "must be one of linear, cosine, cosine_with_restarts, polynomial"),
        ("training", "max_steps", 0, "is 0: nothing would be trained"),
        ("training", "max_steps", 10_000_001, "more than a run can plan"),
        ("quantization", "bnb_4bit_use_double_quant", True, "has no effect without load_in_4bit"),
        ("model", "dtype", "float16", "stores 16-bit weights but neither training.fp16 nor training.bf16 is on"),
    ],
)
def test_wrong_value_names_key_and_value(tmp_path, section, key, value, error):
    content = {**MINIMAL, section: {**MINIMAL.get(section, {}), key: value}}
    (message,) = errors(write(tmp_path, content))
    assert message.startswith(f"FILE: {section}.{key}")
    assert error in message


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "FILE is empty"),
        ("# only a comment\n", "FILE is empty"),
        ("- a\n- b\n", "FILE holds a list, not sections with keys"),
        ("model: " + "[" * 5000, "FILE holds too many values"),
        ("model: !!int x", "FILE is not valid YAML: invalid literal for int()"),
        ("model: 2024-13-45", "FILE is not valid YAML: month must be in 1..12"),
        ("model: !!bool x", "FILE is not valid YAML: "),
        ("model: !!timestamp x", "FILE is not valid YAML: "),
        ("model: &a [*a]", "FILE holds too many values"),
        ("model: [unclosed\n", "FILE is not valid YAML: line 2, column 1: "),
        ("model:\n\tname: x\n", "FILE is not valid YAML: line 2, column 1: "),
        (
            "model: {name_or_path: a}\nmodel: {name_or_path: b}\n",
            "FILE is not valid YAML: line 2, column 1: the key model",
        ),
        ("model: 3\ndata: {train: o/d, format: text}\n", "FILE: model must hold keys, not 3"),
    ],
)
def test_unreadable_yaml(tmp_path, text, error):
    assert errors(write(tmp_path, text))[0].startswith(error)


def test_missing_file_folder_and_encoding(tmp_path):
    assert errors(tmp_path / "run.yaml") == ["FILE is not there"]
    (tmp_path / "latin.yaml").write_bytes("# \xe9\n".encode("latin-1"))
    assert errors(tmp_path / "latin.yaml") == ["FILE is not UTF-8 text (byte 2)"]
    with pytest.raises(UserError, match="Is a directory"):
        read_config(tmp_path)


@pytest.mark.parametrize("override", ["lora.r", "r=3", "lora.=3", "=3"])
def test_malformed_override(tmp_path, override):
    assert errors(write(tmp_path, MINIMAL), override) == [
        f"command line: {override} is not of the form section.key=value"
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [("owner/name", False), ("gpt2", False), ("./x", True), ("~/m", True), ("a/b/c", True), ("x.gguf", True)],
)
def test_hub_id_or_path(name, path):
    assert is_path(name) is path


def test_shipped_configs_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read_config(ROOT / "koalpaca.yaml")
    assert config.compute_dtype == config.storage_dtype == "float16"
    assert config.quantization.load_in_4bit
    mini = read_config(ROOT / "examples/koalpaca-mini.yaml", ["model.name_or_path=owner/model"])
    assert (mini.data.limit, mini.lora.r, mini.training.max_steps) == (32, 16, 50)


KEYS = [f"{section}.{key}" for section, schema in sections().items() for key in schema.model_fields]
YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=12), YAML_VALUES, max_size=5))
def test_whatever_the_values_are_there_is_a_config_or_an_error_with_words(tmp_path, changes):
    content = {name: dict(values) for name, values in MINIMAL.items()}
    for key, value in changes.items():
        section, dot, name = key.partition(".")
        if dot and isinstance(content.get(section, {}), dict):
            content.setdefault(section, {})[name] = value
        else:
            content[key] = value
    path = tmp_path / "fuzz.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    problems: Sequence[Problem] = ()
    try:
        config = read_config(path)
    except UserError as error:
        problems = error.problems
    else:
        list(without_effect(config))
        assert Config.model_validate(config.model_dump()) == config
        return
    assert problems
    assert all(problem.error.strip() for problem in problems)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60), override=st.text(max_size=30))
def test_whatever_the_text_is_there_is_a_config_or_an_error_with_words(tmp_path, text, override):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as error:
        read_config(path, [override])
    assert all(problem.error.strip() for problem in error.value.problems)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_rows_are_no_configuration_and_told_what_to_do(tmp_path, name):
    path = tmp_path / "my rows" / name
    path.parent.mkdir()
    path.write_bytes(b'{"instruction": "a"}')
    with pytest.raises(UserError) as raised:
        read_config(path)
    (found,) = raised.value.problems
    assert (found.error, found.hint.split(" writes")[0]) == (
        f"{path} holds rows, not a configuration", f"lora-train init --data '{path}'"
    )  # fmt: skip
