"""Regular expressions that a configuration or an adapter brings along, tried where they can be ended.

`re` goes back over what it matched: (a+)+$ takes 2^n steps on n letters that do not fit, and peft asks every pattern of
every module's name. Here the same questions are asked first in a process that gets LIMIT seconds of CPU time for all of
them, on an idle machine and on a busy one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import UserError, first_line, problem

LIMIT = 3  # seconds; a pattern that is meant takes microseconds a name
_PLAIN = re.compile(r"[\w.\-]*")  # nothing in it is repeated

# The number of each pattern is printed before it is tried: the last one printed is the one that did not end.
_TRY = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
asked = json.load(sys.stdin)
for number, (method, pattern) in enumerate(asked["patterns"]):
    print(number, flush=True)
    try:
        match = getattr(re.compile(pattern), method)
    except (re.error, RecursionError, OverflowError):
        continue
    for name in asked["names"]:
        match(name)
"""
# a setting -> how peft matches what stands in it (tuners_utils.check_target_module_exists, utils.other.get_pattern_key)
_FORMS = {
    "target_modules": ("fullmatch", r"PATTERN"),
    "exclude_modules": ("fullmatch", r"PATTERN"),
    "rank_pattern": ("match", r"(.*\.)?(PATTERN)$"),
    "alpha_pattern": ("match", r"(.*\.)?(PATTERN)$"),
    "layers_pattern": ("match", r"(?:^|.*?\.)PATTERN\.(?P<idx>\d+)\."),
    "modules_to_save": ("match", r"(^|.*\.)PATTERN($|\..*)"),
}
_LISTS_ARE_NAMES = ("target_modules", "exclude_modules")


def endless(settings: Mapping[str, Any], names: Iterable[str]) -> tuple[str, str] | None:
    """The first setting whose pattern does not come to an end on the names, and the pattern; None if all do.

    Args:
        settings: of a LoRA, under LoraConfig's names; what is no text in them is passed over.
        names: of modules.
    """
    asked = [(key, one) for key in _FORMS for one in _written(key, settings.get(key)) if not _PLAIN.fullmatch(one)]
    if not asked:
        return None
    patterns = [(_FORMS[key][0], _FORMS[key][1].replace("PATTERN", one)) for key, one in asked]
    question = json.dumps({"patterns": patterns, "names": list(names)})
    command = [sys.executable, "-I", "-S", "-c", _TRY, str(LIMIT)]
    done = subprocess.run(command, input=question, capture_output=True, text=True)
    return None if done.returncode == 0 else asked[int(done.stdout.split()[-1])]


def wrong_with(pattern: str) -> str:
    """What `re` says of a pattern that is none; empty if it is one."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return first_line(error)
    return ""


def require_quick(sentence: str, settings: Mapping[str, Any], names: Iterable[str], **values: Any) -> None:
    """Refuses settings with a pattern that does not come to an end.

    Args:
        sentence: of the catalogue, with {key} and {pattern}.
        values: of its other placeholders.

    Raises:
        UserError: names the pattern.
    """
    if (found := endless(settings, names)) is not None:
        raise UserError(problem(sentence, key=found[0], pattern=found[1], seconds=LIMIT, **values))


def _written(key: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    listed = value if isinstance(value, list | tuple | dict) and key not in _LISTS_ARE_NAMES else ()
    return [one for one in listed if isinstance(one, str)]
