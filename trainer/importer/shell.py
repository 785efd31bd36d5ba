"""The flags of a training command in a shell script -> keys: `llamafactory-cli train --stage sft ...`, run_clm.py.

Read as words, never run. A value with a variable or a substitution in it is known only when the shell runs; a flag
without a value is true.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

_VARIABLE = re.compile(r"^\s*(?:export\s+)?(\w+)=(.*)$")


def flags(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The flags of the longest command, and those whose value only a run would tell.

    Raises:
        ValueError: the script's quotes do not match.
    """
    lines = text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    variables: dict[str, str] = {}
    best: list[str] = []
    for line in lines:
        assigned = _VARIABLE.match(line)
        if assigned and "--" not in line:
            variables[assigned[1]] = "".join(shlex.split(assigned[2], comments=True)[:1])
            continue
        words = shlex.split(line, comments=True)
        if sum(word.startswith("--") for word in words) > sum(word.startswith("--") for word in best):
            best = words
    return _keys(best, variables)


def _keys(words: list[str], variables: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    given: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = []
            word = value if equals else ""
        if not name or not word:
            continue
        value = re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), word)
        if "$" in value or "`" in value:
            unknown[name] = value
        else:
            given[name].append(value)
    read = {
        key: values[0] if len(values) == 1 else values or True for key, values in given.items() if key not in unknown
    }
    return read, unknown
