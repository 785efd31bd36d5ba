"""A configuration from a file or a dict of sections, and keywords that win over it.

train("koalpaca.yaml", learning_rate=1e-4)                      a key by its own name
train("koalpaca.yaml", training={"learning_rate": 1e-4})        a section
train("koalpaca.yaml", **{"training.learning_rate": 1e-4})      a key with its section
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..checks.own_code import own_word
from ..checks.read_config import check, read_sections
from ..checks.unknown_keys import full_key
from ..config.schema import Config, sections


def settings(
    config: Mapping[str, Any] | str | Path, overrides: Mapping[str, Any], tell: Callable[[str], None]
) -> Config:
    """The configuration, validated; neither argument is changed.

    Args:
        tell: is given a sentence about keys of other trainers that change nothing.

    Raises:
        UserError: carries every problem found.
    """
    in_file = isinstance(config, (str, Path))
    place = str(config) if in_file else say("api.a_dict")
    raw: dict[str, Any] = {}
    for key, value in (read_sections(config) if in_file else _by_section(config)).items():
        raw[key] = dict(value) if isinstance(value, Mapping) else value
    given = _by_section(overrides)
    for section, values in given.items():
        known = raw.get(section)
        raw[section] = {**(known if isinstance(known, dict) else {}), **values} if isinstance(values, dict) else values
    words = {f"{section}.{name}" for section, values in given.items() if isinstance(values, dict) for name in values}
    checked = check(raw, lambda key: say("api.a_keyword") if key in words else place, tell)
    return own_word(checked, config, [f"{word}=" for word in sorted(words)]) if in_file else checked


def _by_section(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of all three kinds as sections of keys and plain values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in sections() or (isinstance(value, Mapping) and "." not in key):
            own = {str(name): _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value
            both = isinstance(own, dict) and isinstance(found.get(key), dict)
            found[key] = {**found[key], **own} if both else own
        else:
            section, _, name = (key if "." in key else full_key(key, (), key)).partition(".")
            found.setdefault(section, {})[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A value as YAML would have it: no paths, no tuples, no copy shared with the caller."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
