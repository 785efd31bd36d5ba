"""A draft as YAML with comments: what each value is from, and above them what has no counterpart."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from rich.cells import cell_len

from ...instrument.messages import say
from ..config.schema import sections
from .draft import Draft, LeftOver

WIDTH = 110


def as_yaml(draft: Draft, name: str) -> str:
    """The configuration; `name` is the file it is from."""
    return "\n".join((*_head(draft, name), *_sections(draft))) + "\n"


def nested(draft: Draft) -> dict[str, dict[str, Any]]:
    """The values by section, in our order."""
    found: dict[str, dict[str, Any]] = {}
    for section, schema in sections().items():
        set_here = [key for key in schema.model_fields if f"{section}.{key}" in draft.values]
        found[section] = {key: draft.values[f"{section}.{key}"] for key in set_here}
    return found


def _head(draft: Draft, name: str) -> Iterator[str]:
    yield from _wrapped(say("import.head", file=_plain(name), tool=draft.tool))
    matter = [left for left in draft.left if left.matters]
    memory = [left for left in draft.left if left.weight == "memory"]
    told = [left for left in draft.left if left.weight == "harmless" and left.why != say("import.why.harmless")]
    harmless = [left.key for left in draft.left if left.weight == "harmless" and left not in told]
    if matter:
        yield from ("#", *_wrapped(say("import.matters")))
        yield from (line for left in matter for line in _entry(left))
    if memory:
        yield from ("#", *_wrapped(say("import.memory")))
        yield from (line for left in memory for line in _wrapped(f"- {left.key}: {left.value}"))
    if told:
        yield from ("#", *_wrapped(say("import.otherwise")))
        yield from (line for left in told for line in _wrapped(f"- {left.key}: {left.value} -- {left.why}"))
    if harmless:
        yield from ("#", *_wrapped(say("import.harmless", keys=_plain(", ".join(harmless)))))


def _entry(left: LeftOver) -> Iterator[str]:
    yield from _wrapped(f"! {left.key}: {left.value} -- {left.why}")


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(_plain(text), WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in lines]


def _plain(text: str) -> str:
    """One line: a comment must not end before it ends."""
    return "".join(c if c.isprintable() else " " for c in text)


def _sections(draft: Draft) -> Iterator[str]:
    for section, values in nested(draft).items():
        if not values:
            continue
        yield f"{section}:"
        for key, value in values.items():
            line = f"  {key}: {in_yaml(value)}"
            notes = [draft.origin.get(f"{section}.{key}", ""), draft.remarks.get(f"{section}.{key}", "")]
            note = _plain("; ".join(note for note in notes if note and note != key))
            yield commented(line, note, 40) if note else line


def commented(line: str, note: str, column: int) -> str:
    """A line with its comment in a column of the screen, where a Korean letter takes two."""
    return f"{line}{' ' * max(0, column - cell_len(line))}  # {note}"


def in_yaml(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()
