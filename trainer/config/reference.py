"""What every configuration key means, for whoever asks: `--help`, docs/config.md and an editor.

All of it is made of the sections' fields: their types, defaults and limits, and the strings under them, which say it in
English and, after an empty line, in Korean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .schema import Config, Section, sections

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A limit alone, and where there are two.
LIMIT = {"minimum": "≥ {:g}", "exclusiveMinimum": "> {:g}", "maximum": "≤ {:g}", "exclusiveMaximum": "< {:g}"}
RANGE = {**LIMIT, "minimum": "{:g} ≤ x", "exclusiveMinimum": "{:g} < x"}


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: `section.key`.
        types: what its value may be, in JSON Schema's words: "integer", "array of string", "null".
        allowed: words and limits where not every value of the type will do: "nf4", "≥ 1", "0 ≤ x < 1".
        default: as it is written in YAML; None where there is none and the key is required.
        meaning: by language.
    """

    name: str
    types: list[str]
    allowed: list[str]
    default: str | None
    meaning: dict[str, str]


def keys() -> Iterator[Key]:
    """Every key, in the order of the configuration."""
    for name, section in sections().items():
        properties = section.model_json_schema()["properties"]
        for key, field in section.model_fields.items():
            kinds = list(_kinds(properties[key]))
            types = list(dict.fromkeys(_type(kind) for kind in kinds))
            allowed = [word for kind in kinds for word in _allowed(kind)]
            default = None if field.is_required() else _yaml_word(field.default)
            yield Key(f"{name}.{key}", types, allowed, default, in_languages(field.description or ""))


def in_languages(description: str) -> dict[str, str]:
    """The parts of a description, each in one line.

    Raises:
        ValueError: it is not in two languages.
    """
    english, korean = (" ".join(part.split()) for part in description.split("\n\n"))
    return {"en": english, "ko": korean}


def json_schema() -> dict[str, Any]:
    """JSON Schema of the YAML file: an editor completes and checks by it.

    Descriptions are in both languages. A section without required keys may be empty, as `lora:` is.
    """
    properties = {name: _section_schema(section) for name, section in sections().items()}
    return {
        "$schema": DIALECT,
        "title": "lora-train",
        "description": "lora-train --config FILE",
        "type": "object",
        "properties": properties,
        "required": [name for name, field in Config.model_fields.items() if field.is_required()],
        "additionalProperties": False,
    }


def study_schema() -> dict[str, Any]:
    """JSON Schema of a study file: an editor completes and checks by it. What varies are keys of the configuration."""
    names = [key.name for key in keys()]
    whole = {"type": "integer", "minimum": 1}
    numbers = {"type": ["number", "string"]}
    span = {"low": numbers, "high": numbers, "scale": {"enum": ["linear", "log"]}, "points": {**whole, "minimum": 2}}
    values = {
        "oneOf": [
            {"type": "array", "minItems": 2},
            {"type": "object", "properties": span, "required": ["low", "high"], "additionalProperties": False},
        ]
    }
    varied = {"type": "object", "propertyNames": {"enum": names}, "additionalProperties": values}
    one_round = {"type": "object", "properties": {"best": whole, "steps": whole}, "required": ["best", "steps"]}
    properties = {
        "base": {"type": ["string", "object"]}, "folder": {"type": "string"}, "scientific": varied, "nuisance": varied,
        "fixed": {"type": "object", "propertyNames": {"enum": names}}, "sampler": {"enum": ["grid", "sobol", "tpe"]},
        "seed": {"type": "integer", "minimum": 0}, "trials": whole, "steps": whole, "seeds": whole,
        "metric": {"type": "string"}, "early_stop": {"enum": ["median", False, None]},
        "rounds": {"type": "array", "items": one_round}, "threads": whole, "lost_after_seconds": whole,
    }  # fmt: skip
    return {
        "$schema": DIALECT,
        "title": "lora-train sweep",
        "type": "object",
        "properties": properties,
        "required": ["base", "steps"],
        "additionalProperties": False,
    }


def _section_schema(section: type[Section]) -> dict[str, Any]:
    schema = _without_titles(section.model_json_schema())
    return schema if schema.get("required") else {**schema, "type": ["object", "null"]}


def _without_titles(schema: Mapping[str, Any]) -> dict[str, Any]:
    """pydantic makes a title of every name; descriptions lose their line breaks but the one between the languages."""
    kept = {name: value for name, value in schema.items() if name != "title"}
    if "description" in kept:
        kept["description"] = "\n\n".join(in_languages(kept["description"]).values())
    if "properties" in kept:
        kept["properties"] = {name: _without_titles(own) for name, own in kept["properties"].items()}
    return kept


def _kinds(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The alternatives of a property."""
    for kind in schema.get("anyOf", [schema]):
        yield from _kinds(kind) if "anyOf" in kind else [kind]


def _type(kind: Mapping[str, Any]) -> str:
    if kind["type"] == "array":
        return f"array of {_type(kind['items'])}"
    return kind["type"]


def _allowed(kind: Mapping[str, Any]) -> Iterator[str]:
    yield from map(_yaml_word, kind.get("enum", [kind["const"]] if "const" in kind else []))
    limits = [name for name in LIMIT if name in kind]
    texts = LIMIT if len(limits) == 1 else RANGE
    if limits:
        yield " ".join(texts[name].format(kind[name]) for name in limits)


def _yaml_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
