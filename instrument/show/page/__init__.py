"""One self-contained HTML file: data as JSON, plotly, and the files of this folder. Imports no torch.

page.html   where everything is put           common.js   text without markup, charts, a place that reloads keep
page.css    light and dark, phone and print    report.js, compare.js   what draws the data
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from ...messages import LANGUAGES, catalogue

FOLDER = Path(__file__).parent
EXTRA = "pip install 'lora-vitals[report]'"


class NoPlotly(Exception):
    """plotly is not installed; it comes with the extra `report`."""


def plotly_js() -> str:
    """The library's own script.

    Raises:
        NoPlotly: it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise NoPlotly(EXTRA) from error
    return get_plotlyjs()


def document(title: str, data: dict[str, Any], script: str) -> str:
    """An HTML page.

    Args:
        title: text.
        data: for JSON; nothing in it is taken for markup.
        script: name of the file in this folder that draws it.
    """
    parts = {
        "title": escape(title),
        "style": _file("page.css"),
        "common": _file("common.js"),
        "script": _file(script),
        "data": as_json(data),
        "plotly": plotly_js(),
    }
    # in one pass: what a part says is never a place for another
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("page.html"))


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def as_json(data: Any) -> str:
    """JSON that may stand inside a script element: `<` and the line separators are escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def texts(family: str) -> dict[str, dict[str, str]]:
    """By language what a page says: the sentences of its family, and those that both pages share."""
    return {
        lang: {key: text for key, text in catalogue(lang).items() if key.startswith((family, "page."))}
        for lang in LANGUAGES
    }
