"""What is made of the descriptions of the keys: help, and a schema that takes and refuses what the reader does."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from typing import Any

import pytest
import yaml
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.config.reference import DIALECT, in_languages, json_schema, keys
from lora_train.trainer.config.schema import Config, sections
from lora_train.trainer.errors import UserError

from ...conftest import ROOT

EXAMPLES = (path for path in sorted((ROOT / "examples").glob("*.yaml")) if not path.name.startswith("study"))
SHIPPED = [ROOT / "koalpaca.yaml", *EXAMPLES]  # studies are of another schema
KINDS = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip
# what a word of JSON Schema demands of a value; the values are those of the sections' limits
DEMANDS = {
    "enum": lambda value, known: value in known,
    "const": lambda value, known: value == known,
    "minimum": lambda value, limit: value >= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "required": lambda value, names: set(names) <= value.keys(),
}
SILENT = {"$schema", "title", "description", "default"}


def is_of(value: Any, kind: str) -> bool:
    return isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def allows(schema: dict[str, Any], value: Any) -> bool:
    """JSON Schema, as far as our schema uses it; any other word in it is a KeyError."""
    words = dict(schema)
    if "anyOf" in words:
        return {*words} <= SILENT | {"anyOf"} and any(allows(kind, value) for kind in words["anyOf"])
    kinds = words.pop("type")
    if not any(is_of(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if value is None:
        return True
    properties, others = words.pop("properties", {}), words.pop("additionalProperties", True)
    if isinstance(value, dict) and not (others or value.keys() <= properties.keys()):
        return False
    inner = [(properties[name], value[name]) for name in properties if name in value] if properties else []
    inner += [(words["items"], item) for item in value] if "items" in words else []
    words.pop("items", None)
    told = all(DEMANDS[word](value, demand) for word, demand in words.items() if word not in SILENT)
    return told and all(allows(own, item) for own, item in inner)


def changed(key: str, value: Any) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "koalpaca.yaml").read_text(encoding="utf-8"))
    section, _, name = key.partition(".")
    content.setdefault(section, {})[name] = value
    return content


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_fit_the_schema_that_their_first_line_names(path):
    text = path.read_text(encoding="utf-8")
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named
    schema = json.loads((path.parent / named[1]).read_text(encoding="utf-8"))
    assert schema == json_schema()
    assert allows(schema, yaml.safe_load(text))


BAD = {
    "lora.rnak": 8, "lora.r": "eight", "training.fp16": "maybe", "training.optim": "adam", "lora.lora_dropout": 1.0,
    "data.cutoff_len": 1, "data.skip_rows": [-1], "training.save_steps": 1.5, "precision.loss_scale": -1,
    "model.name_or_path": "", "training.save_safetensors": False, "instrument.sites": 3, "trainig.seed": 1,
}  # fmt: skip
GOOD = {
    "lora.target_modules": ["q_proj"], "training.save_steps": 0.1, "precision.loss_scale": 1024,
    "precision.fp32_modules": ["a"], "training.lr_scheduler_kwargs": {"num_decay_steps": 3},
    "training.resume_from_checkpoint": True, "training.learning_rate": 1, "model.revision": None,
}  # fmt: skip


@pytest.mark.parametrize("key", [*BAD, *GOOD])
def test_schema_and_reader_agree(key, tmp_path):
    content = changed(key, (BAD | GOOD)[key])
    assert allows(json_schema(), content) == (key in GOOD)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    if key in GOOD:
        read_config(path, ["quantization.load_in_4bit=false", "quantization.bnb_4bit_use_double_quant=false"])
    else:
        with pytest.raises(UserError):
            read_config(path)


def test_what_is_required_and_what_may_be_empty():
    content = changed("lora.r", 8)
    for name in content:
        without, empty = copy.deepcopy(content), {**content, name: None}
        del without[name]
        assert allows(json_schema(), without) == (name not in ("model", "data")), name
        assert allows(json_schema(), empty) == (name not in ("model", "data")), name


def test_an_independent_validator_agrees():
    if importlib.util.find_spec("jsonschema") is None:
        pytest.skip("jsonschema is not installed")
    from jsonschema import Draft202012Validator  # type: ignore[import-not-found]

    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == DIALECT == Draft202012Validator.META_SCHEMA["$id"]
    validator = Draft202012Validator(json_schema())
    for path in SHIPPED:
        assert validator.is_valid(yaml.safe_load(path.read_text(encoding="utf-8")))
    for key, value in (BAD | GOOD).items():
        assert validator.is_valid(changed(key, value)) == (key in GOOD), key


def test_every_default_is_a_value_that_the_schema_allows():
    for name, section in sections().items():
        properties = json_schema()["properties"][name]["properties"]
        assert list(properties) == list(section.model_fields)
        for key, field in section.model_fields.items():
            assert field.is_required() or allows(properties[key], field.default), key


def test_every_key_and_section_is_described_in_both_languages():
    meanings = [(key.name, key.meaning) for key in keys()]
    meanings += [(name, in_languages(section.__doc__ or "")) for name, section in sections().items()]
    assert len(meanings) == sum(1 + len(section.model_fields) for section in sections().values())
    for name, meaning in meanings:
        assert meaning["en"], name
        assert not re.search("[가-힣]", meaning["en"]), name
        assert re.search("[가-힣]", meaning["ko"]), name
    rank = json_schema()["properties"]["lora"]["properties"]["r"]
    assert rank["description"] == "Rank of the adapter.\n\n어댑터의 rank."


@pytest.mark.parametrize("description", ["", "Rank.", "Rank.\n\nOf it.\n\n어댑터의 rank."])
def test_a_description_in_one_language_is_refused(description):
    with pytest.raises(ValueError, match="unpack"):
        in_languages(description)


def test_allowed_values_are_those_of_the_types():
    found = {key.name: key for key in keys()}
    assert found["training.save_steps"].types == ["integer", "number"]
    assert found["training.save_steps"].allowed == ["≥ 1", "0 < x < 1"]
    assert found["lora.lora_dropout"].allowed == ["0 ≤ x < 1"]
    assert found["precision.loss_scale"].allowed == ["dynamic", "auto", "> 0"]
    assert found["data.skip_rows"].types == ["array of integer"]
    assert (found["model.revision"].types, found["model.revision"].default) == (["string", "null"], "null")
    assert found["model.name_or_path"].default is None
    assert {key.name.partition(".")[0] for key in keys()} == set(Config.model_fields)
