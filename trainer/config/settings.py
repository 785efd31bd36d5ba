"""Changes of a configuration that are made while a run goes on: {"section.key": value}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .schema import Config

Settings = Mapping[str, Any]


def with_settings(config: Config, settings: Settings) -> Config:
    """The configuration with these values; lists are added to."""
    values = config.model_dump()
    for key, value in settings.items():
        section, _, name = key.partition(".")
        before = values[section][name]
        values[section][name] = [*before, *(v for v in value if v not in before)] if _extends(before, value) else value
    return Config.model_validate(values)


def _extends(before: Any, value: Any) -> bool:
    return isinstance(before, list) and isinstance(value, list)


def as_overrides(settings: Settings) -> list[str]:
    """The settings as they are typed after `lora-train --config FILE`."""
    return [f"{key}={_typed(value)}" for key, value in settings.items()]


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
