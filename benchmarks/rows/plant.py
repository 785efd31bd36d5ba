"""Real rows, and rows that are spoiled on purpose."""

from __future__ import annotations

import importlib
import inspect
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

KINDS = ("swapped", "garbled", "language", "cut", "copy")
PACKAGES = ("numpy", "numpy.linalg", "numpy.random", "torch", "torch.nn", "torch.nn.functional", "torch.linalg",
            "pandas", "os", "os.path", "shutil", "statistics", "itertools", "functools", "math", "random", "re",
            "string", "textwrap", "datetime", "collections", "json", "subprocess", "threading", "socket", "email",
            "http.client", "urllib.parse", "argparse", "logging", "inspect", "ast", "asyncio", "decimal", "fractions",
            "heapq", "bisect", "tempfile", "zipfile", "tarfile", "csv", "sqlite3", "unittest", "difflib", "calendar",
            "locale", "gettext", "mailbox", "xml.dom.minidom", "xml.etree.ElementTree", "html", "ipaddress", "pathlib",
            "pickle", "copy", "types", "typing", "enum", "contextlib", "pyarrow")  # fmt: skip
MOST_WORDS, LEAST_WORDS = 36, 8


@cache
def documented() -> list[dict[str, str]]:
    """Rows of public functions and classes, each answer once."""
    rows, seen = [], set()
    for name in PACKAGES:
        for path, text in _of_module(name):
            if text not in seen:
                seen.add(text)
                rows.append({"instruction": f"What does {path} do in Python?", "output": text})
    return rows


def _of_module(name: str) -> Iterator[tuple[str, str]]:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return
    for own, value in sorted(vars(module).items()):
        if own.startswith("_") or inspect.ismodule(value):
            continue
        found: list[tuple[str, Any]] = [(f"{name}.{own}", value)]
        if inspect.isclass(value):
            found += [(f"{name}.{own}.{m}", v) for m, v in sorted(vars(value).items()) if not m.startswith("_")]
        for path, target in found:
            text = _first_sentences(target)
            if text:
                yield path, text


def _first_sentences(value: Any) -> str:
    text = inspect.getdoc(value) if callable(value) else None
    if not isinstance(text, str):
        return ""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    prose = [part for part in paragraphs if part.endswith((".", ":")) and "(" not in part.split(" ")[0]]
    words = " ".join(prose[:2]).split()[:MOST_WORDS]
    return " ".join(words) if len(words) >= LEAST_WORDS else ""


def plant(folder: Path, seed: int, n_rows: int, each: int) -> dict[int, str]:
    """Writes rows.jsonl with so many rows, spoiled ones among them; row -> kind."""
    draw = random.Random(seed)
    rows = draw.sample(documented(), n_rows - each)
    korean = [json.loads(line)["output"] for line in
              Path("examples/data/koalpaca_mini.jsonl").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    chosen = draw.sample(range(len(rows)), 5 * each)
    kinds: dict[int, str] = {}
    groups = [chosen[at * each : (at + 1) * each] for at in range(5)]
    answers = [rows[at]["output"] for at in groups[0]]
    for at, answer in zip(groups[0], answers[1:] + answers[:1], strict=True):
        rows[at], kinds[at] = rows[at] | {"output": answer}, "swapped"
    for at in groups[1]:
        rows[at], kinds[at] = rows[at] | {"output": _garbled(rows[at]["output"], draw)}, "garbled"
    for at in groups[2]:
        rows[at], kinds[at] = rows[at] | {"output": draw.choice(korean)[:120]}, "language"
    for at in groups[3]:
        words = rows[at]["output"].split()
        rows[at], kinds[at] = rows[at] | {"output": " ".join(words[: len(words) // 2])}, "cut"
    copies = [(rows[at] | {"output": _changed(rows[at]["output"], draw)}) for at in groups[4]]
    places = draw.sample(range(n_rows), each)
    everything: list[tuple[dict[str, str], str]] = [(row, kinds.get(at, "")) for at, row in enumerate(rows)]
    for place, copy in zip(sorted(places), copies, strict=True):
        everything.insert(place, (copy, "copy"))
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row, _ in everything), encoding="utf-8")
    return {at: kind for at, (_, kind) in enumerate(everything) if kind}


def _garbled(text: str, draw: random.Random) -> str:
    return " ".join("".join(draw.sample(word, len(word))) for word in text.split())


def _changed(text: str, draw: random.Random) -> str:
    words = text.split()
    for at in draw.sample(range(len(words)), 3):
        words[at] = draw.choice(["value", "thing", "number", "object", "name", "other"])
    return " ".join(words)
