"""Which sentences the code asks for.

A key of the catalogue stands whole, as one literal, where it is asked for or in a table beside it: `say("data.empty")`,
TITLES in trainer/collapse/screen.py. A key with `.hint` or `.hint_stock` goes with its sentence where `problem`, a
finding or a SourceError asks for that.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

# what takes a key, and at which place
ASKS = {"say": 0, "problem": 0, "SourceError": 0, "say_in": 1, "Finding": 2, "_note": 0, "_remark": 0}
WITHOUT_HINT = ("say", "say_in", "partial")
# orders findings by their keys, and makes none
NO_ASKING = "reconcile.py"
FILES = (".yaml", ".html", ".js", ".css")
KEY = re.compile(r"[a-z_]+(\.\w+)+")


class Asked:
    """What some files ask for.

    Attributes:
        keys: how often each literal that may be a key stands there.
        only_said: how often it is one of `say`, which shows no hint.
        composed: places that put a key together.
    """

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()
        self.only_said: Counter[str] = Counter()
        self.composed: list[str] = []

    def python(self, text: str, name: str = "planted.py") -> Asked:
        tree = ast.parse(text)
        no_keys = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        no_keys |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in no_keys and KEY.fullmatch(str(node.value)):
                self.keys[str(node.value)] += 1
            elif isinstance(node, ast.Call):
                self._call(node, name)
        return self

    def _call(self, call: ast.Call, name: str) -> None:
        asks = getattr(call.func, "id", getattr(call.func, "attr", ""))
        place = ASKS.get(asks)
        if place is not None and len(call.args) > place:
            parts = list(ast.walk(call.args[place]))
            self.composed += [f"{name}:{part.lineno}" for part in parts if isinstance(part, (ast.JoinedStr, ast.BinOp))]
        if asks in WITHOUT_HINT:
            said = [node for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Constant)]
            self.only_said.update(str(node.value) for node in said if KEY.fullmatch(str(node.value)))

    def script(self, text: str, name: str = "planted.js") -> Asked:
        self.keys.update(re.findall(r'"([a-z_]+(?:\.\w+)+)"', text))
        self.composed += [f"{name}: {found}" for found in re.findall(r'\bt\((?:"[^"]*" \+|`|\w+ \+)[^)]*', text)]
        return self


def asked_by(root: Path) -> Asked:
    """What the product asks for."""
    asked = Asked()
    for top in ("instrument", "trainer"):
        for path in sorted((root / top).rglob("*.py")):
            if path.name == NO_ASKING:
                continue
            asked.python(path.read_text(encoding="utf-8"), str(path.relative_to(root)))
    scripts = [path for page in ("show/page", "board/page") for path in (root / "instrument" / page).rglob("*.js")]
    for path in sorted(scripts):
        asked.script(path.read_text(encoding="utf-8"), path.name)
    return asked


def faults(asked: Asked, sentences: Mapping[str, str], no_sentences: Collection[str]) -> Iterator[str]:
    """What is wrong: sentences that nobody asks for, keys without a sentence, and keys that are put together.

    Args:
        no_sentences: literals that look like keys and are others': `data.train` of a configuration.
    """
    families = {key.partition(".")[0] for key in sentences}
    for key in sentences:
        base = re.sub(r"\.hint(_stock)?$", "", key)
        if not asked.keys[base]:
            yield f"dead: {key}"
        elif key != base and asked.keys[base] == asked.only_said[base]:
            yield f"dead: {key}, its sentence is only said"
    for key in asked.keys:
        of_others = key in no_sentences or key.endswith(FILES)
        if key not in sentences and key.partition(".")[0] in families and not of_others:
            yield f"missing: {key}"
    yield from (f"composed: {where}" for where in asked.composed)


def words(root: Path, folder: str, call: str, place: int) -> set[str]:
    """The literal words at a place of the arguments of every such call in a folder."""
    found = set()
    for path in (root / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == call and len(node.args) > place:
                constants = [part for part in ast.walk(node.args[place]) if isinstance(part, ast.Constant)]
                found |= {part.value for part in constants if isinstance(part.value, str)}
    return found
