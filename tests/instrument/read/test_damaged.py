"""JSON whose numbers nothing can hold, wherever a run folder or an adapter has some."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from lora_train.instrument.read.damaged import DEEPEST, parse_foreign_json, parse_own_json, parse_yaml
from lora_train.instrument.read.logs import read_history
from lora_train.instrument.read.store import read_metrics
from lora_train.instrument.show.report import write_report
from lora_train.trainer.checks.run_config import run_config
from lora_train.trainer.collapse.recorded import step_lines
from lora_train.trainer.errors import UserError
from lora_train.trainer.verbs.adapter_folder import _read_json, _read_yaml

from ...conftest import ROOT

RUNS = ROOT / "tests" / "runs"
HUGE = ["9" * 20, "9" * 400, "9" * 5000, "1e999", "-1e999"]


@pytest.mark.parametrize("number", HUGE)
def test_a_number_that_nothing_holds_is_none(number, tmp_path):
    with pytest.raises(ValueError, match=r"number|digits"):
        parse_own_json(f'{{"step": {number}}}')
    (tmp_path / "a.json").write_text(f'{{"lora_alpha": {number}}}')
    with pytest.raises(UserError):
        _read_json(tmp_path / "a.json")


def nested(deep: int) -> str:
    return "[" * deep + "]" * deep


@pytest.mark.parametrize("parse", [parse_own_json, parse_foreign_json, parse_yaml])
def test_what_is_nested_too_deep_to_be_walked_is_told_before(parse):
    assert json.dumps(parse(nested(DEEPEST))) == nested(DEEPEST)
    for deep in (DEEPEST + 1, 480):
        with pytest.raises(RecursionError):
            parse(nested(deep))
    assert len(parse(f"[{', '.join([nested(2)] * 200)}]")) == 200


def test_an_alias_may_be_used_often_and_may_not_hold_itself():
    assert parse_yaml("a: &a [1]\nb: [*a, *a]") == {"a": [1], "b": [[1], [1]]}
    with pytest.raises(RecursionError):
        parse_yaml("a: &a [*a]")


@pytest.mark.parametrize("name", ["env.json", "config.yaml", "incidents/step-13/diagnosis.json"])
def test_a_page_is_made_of_a_run_whose_files_are_nested_too_deep(name, tmp_path):
    run = shutil.copytree(RUNS / "healed", tmp_path / "run")
    for text in (f'{{"versions": {nested(490)}}}', "versions: &a [*a]"):
        (run / name).write_text(text)
        assert write_report(run).is_file()


def test_numbers_of_others_are_floats():
    first, *others = parse_foreign_json("[7, 99999999999999999999, -1e999, " + "9" * 400 + "]")
    assert (first, type(first)) == (7, int)
    assert others == [1e20, -math.inf, math.inf]


@pytest.mark.parametrize("number", HUGE[:3])
def test_a_yaml_number_that_nothing_holds_is_none(number, tmp_path):
    with pytest.raises(ValueError, match=r"number|digits"):
        parse_yaml(f"training: {{max_steps: [1, {number}]}}")
    run = shutil.copytree(RUNS / "healthy", tmp_path / "run")
    file = run / "config.yaml"
    file.write_text(file.read_text() + f"\nmore: {{n: {number}}}\n")
    assert read_history(run).config == {}
    assert write_report(run).is_file()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp x",
        "a: !!int x",
        "a: !!bool maybe",
        "? 99999999999999999999\n: 1",
        "!!set {9e1: , 99999999999999999999: }",
    ],
)
def test_a_yaml_value_of_another_type_than_its_tag_is_damage(text, tmp_path):
    with pytest.raises(ValueError, match=r"tag|int64|invalid literal"):
        parse_yaml(text)
    run = shutil.copytree(RUNS / "healthy", tmp_path / "run")
    (run / "config.yaml").write_text(text)
    assert read_history(run).config == {}
    with pytest.raises(UserError):
        _read_yaml(run / "config.yaml")
    with pytest.raises(UserError):
        run_config(run / "config.yaml")


def test_other_numbers_are_what_json_says():
    text = '[1, -9223372036854775808, 1.5, 1e308, 5e-324, NaN, -Infinity, "9e999"]'
    first, least, *others = parse_own_json(text)
    assert (first, least, type(first)) == (1, -(2**63), int)
    assert others[:3] == [1.5, 1e308, 5e-324]
    assert math.isnan(others[3])
    assert others[4:] == [-math.inf, "9e999"]


@pytest.mark.parametrize("number", [*HUGE, "1e30", '"x"'])
@pytest.mark.parametrize("key", ["step", "start", "loss_scale"])
def test_a_line_of_metrics_with_such_a_number_ends_nothing(tmp_path, key, number):
    run = shutil.copytree(RUNS / "healed", tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    values = json.loads(lines[3])
    values[key] = "HERE"
    lines[3] = json.dumps(values).replace('"HERE"', number)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    whole = len(read_metrics(RUNS / "healed"))
    assert len(read_metrics(run)) == whole - (key != "loss_scale" or number in HUGE)
    assert write_report(run).is_file()
    assert read_history(run).last_step == read_history(RUNS / "healed").last_step


def test_a_diagnosis_with_such_a_number_is_left_out(tmp_path):
    run = shutil.copytree(RUNS / "healed", tmp_path / "run")
    file = next(run.glob("incidents/*/diagnosis.json"))
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"step": 10**400}))
    assert read_history(run).incidents == []
    assert write_report(run).is_file()


def test_a_line_without_its_step_is_no_step_to_replay(tmp_path):
    run = shutil.copytree(RUNS / "healed", tmp_path / "run")
    whole = step_lines(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(line.replace('"step"', '"stop"', 1) for line in lines[:1] + lines))
    assert len(step_lines(run)) < len(whole)
