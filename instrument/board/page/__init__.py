"""The page of the board: one HTML file whose policy lets no script run but its own. Imports no torch.

board.html   where everything is put     board.css   light and dark, phone
kit.js       text, numbers, the picture of the loss, one row     notes.js   the dialog of tags and note
board.js     order, filters, ticks, the stream
live.js      what a run's page does when rows are appended   waiting.js   a run that has not begun
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...messages import LANGUAGES, catalogue, language
from ...show.page import as_json

FOLDER = Path(__file__).parent
SCRIPTS = ("kit.js", "notes.js", "board.js")
LIVE = FOLDER / "live.js"
FAMILIES = ("board.page.", "board.status.", "page.topic.")


def texts() -> dict[str, dict[str, str]]:
    """By language what the board says."""
    return {
        lang: {key: text for key, text in catalogue(lang).items() if key.startswith(FAMILIES)} for lang in LANGUAGES
    }


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A content security policy for these scripts and styles and for requests to the page's own server."""
    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; img-src data:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def hashes(texts: Sequence[str]) -> str:
    """What a policy calls scripts or styles by; 'none' without any."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def board_page(title: str, data: dict[str, Any]) -> tuple[str, str]:
    """The page of the board and its policy."""
    scripts, style = [_file(name) for name in SCRIPTS], _file("board.css")
    parts = {
        "lang": language(),
        "title": escape(title),
        "style": style,
        "data": as_json({**data, "text": texts()}),
        "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    # in one pass: what a part says is never a place for another
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("board.html"))
    return page, policy(scripts, [style])


def waiting_page(sentences: dict[str, str]) -> tuple[str, str]:
    """The page of a run that has not begun, and its policy."""
    script, style = _file("waiting.js"), _file("board.css")
    body = (
        '<main><h1>lora-train</h1><p class="empty" role="status"></p></main>'
        f'<script type="application/json" id="data">{as_json(sentences)}</script><script>{script}</script>'
    )
    return _bare(f"<style>{style}</style>", body), policy([script], [style])


def simple_page(sentence: str) -> str:
    """A page of one sentence."""
    return _bare(
        '<meta name="color-scheme" content="light dark">', f"<main><h1>lora-train</h1><p>{escape(sentence)}</p></main>"
    )


def _bare(head: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="{language()}"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>lora-train</title>'
        f"{head}</head><body>{body}</body></html>"
    )


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
