"""Numbers, times and settings as people write them, and text without the machine's paths. Imports no torch."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ...messages import LANGUAGES, say_in

UNKNOWN = "–"
# Two steps and more from the root, or a drive; not the rest of a web address, of a relative path, of "tokens/s".
_UNIX = re.compile(r"(?<![\w.:/~\-])(?:file://)?(?:~|(?=/))(?:/[^\s/'\",;:=\[\](){}<>]+){2,}/?")
_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:\\[^\s'\",;]+")
SMALL, LARGE = 1e-3, 1e15
# Folders whose folders are named after people.
HOMES = ("home", "Users")


def number(value: float | int | None, digits: int = 4) -> str:
    """1,234,567; 0.02; 6e-5; 10,210; – where there is none."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < LARGE:
        return f"{int(value):,}"
    if abs(value) < SMALL or abs(value) >= LARGE:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def setting(value: Any) -> str:
    """A value of a configuration: true, 0.0001 as 1e-4, lists without brackets, – for nothing."""
    if value is None or value == [] or value == {}:
        return UNKNOWN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value, 7)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {setting(item)}" for key, item in value.items())
    return str(value)


def run_name(source: str) -> str:
    """What a run is called in a page that others see: its folder, or the files of a log."""
    paths = [Path(part).resolve() for part in source.split(" + ")]
    return " + ".join(path.parent.name if path.name == "trainer_state.json" else path.name for path in paths)


def without_paths(value: Any) -> Any:
    """The same with each absolute path as its last part, "…/llama": who made a page is not in it."""
    if isinstance(value, str):
        return _WINDOWS.sub(_last, _UNIX.sub(_last, value))
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    return value


def _last(found: re.Match[str]) -> str:
    parts = re.split(r"[/\\]", found[0].rstrip("/\\"))
    return "~" if len(parts) > 1 and parts[-2] in HOMES else "…/" + parts[-1]


def both(key: str, /, **values: Any) -> dict[str, str]:
    """A sentence in every language."""
    return {lang: say_in(lang, key, **values) for lang in LANGUAGES}
