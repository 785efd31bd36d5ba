"""One self-contained HTML file: data as JSON, the chart library, and the files of this folder. Imports no torch.

page.html   where everything is put           common.js   text without markup, a place that reloads keep, numbers
page.css    light and dark, phone and print   charts/     lines over steps, epochs, rows, tokens or time, and how they
vendor/     uPlot, as npm has it                          are read
people.py   numbers as people write them      layers/     layers by projections
                                              rows.js     training rows, loss against gradient
                                              drawing.js  a study's values and what they reached
                                              live.js     window.loraTrain: points that come while a page is open
                                              report.js, compare.js, study.js   what a page shows, in order

Nothing is fetched: the policy in the page forbids it, and lets no script run but those that are written here.
`python -m benchmarks.vendor_page` renews vendor/.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...messages import LANGUAGES, catalogue

FOLDER = Path(__file__).parent
SHARED = ("vendor/uPlot.iife.min.js", "common.js", "charts/marks.js", "charts/reading.js", "charts/charts.js")
STYLES = ("vendor/uPlot.min.css", "page.css")


def document(title: str, data: dict[str, Any], scripts: Sequence[str], live: str = "") -> str:
    """An HTML page.

    Args:
        title: text.
        data: for JSON; nothing in it is taken for markup.
        scripts: files in this folder that draw it, after those that all pages share.
        live: a script that feeds the page through `window.loraTrain` (live.js) from the server that it came from, the
            only one that it may then ask; empty: it may ask nobody.
    """
    own = [_file(name) for name in (*SHARED, *scripts)] + ([live] if live else [])
    style = "\n".join(map(_file, STYLES))
    policy = f"default-src 'none'; script-src {_hashes(own)}; style-src {_hashes([style])}; img-src data:; "
    policy += "connect-src 'self'; " if live else "connect-src 'none'; "
    policy += "form-action 'none'; base-uri 'none'"
    parts = {
        "title": escape(title),
        "policy": escape(policy),
        "style": style,
        "scripts": "\n".join(f"<script>{text}</script>" for text in own),
        "data": as_json(data),
    }
    # in one pass: what a part says is never a place for another
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("page.html"))


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hashes(texts: Sequence[str]) -> str:
    """What a policy calls scripts or styles by."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def as_json(data: Any) -> str:
    """JSON that may stand inside a script element: `<` and the line separators are escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def texts(family: str) -> dict[str, dict[str, str]]:
    """By language what a page says: the sentences of its family, and those that all pages share."""
    return {
        lang: {key: text for key, text in catalogue(lang).items() if key.startswith((family, "page."))}
        for lang in LANGUAGES
    }
