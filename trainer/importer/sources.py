"""From a file to what is in it: keys of YAML or JSON, the flags or the syntax tree of a script. Nothing in it is run.

yaml's safe loader, json and ast only. What is too large, too deep, not text or not whole is said in a sentence.
"""

from __future__ import annotations

import ast
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...instrument.messages import say
from ...instrument.read.files import read_given
from ..errors import Problem, UserError, kind_of_value, problem
from .shell import flags

SCRIPTS = (".py", ".ipynb", ".sh")
LARGEST = 2**20
LARGEST_NOTEBOOK = 16 * 2**20
# What PyYAML raises besides its own for a value that contradicts its tag: `!!int x`, 2024-13-45, `!!bool x`.
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
# Values in a file with its aliases followed, and how deep they may lie.
MOST_VALUES, DEEPEST = 20_000, 40


@dataclass(frozen=True)
class Keys:
    """Keys and values; `unknown`: keys with the text of a value that only a run would tell."""

    given: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)


def read_source(path: Path) -> Keys | ast.Module:
    """What a file holds.

    Raises:
        UserError: it cannot be read; says why.
    """
    text = text_of(path)
    if path.suffix == ".py":
        return parse(text, path)
    if path.suffix == ".ipynb":
        return _notebook(text, path)
    if path.suffix == ".sh":
        return _shell(text, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            raw = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except RecursionError:
        raise UserError(problem("import.too_deep", file=path)) from None
    except (*YAML_ERRORS, Warning) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", 0)
        what = getattr(error, "problem", None) or getattr(error, "msg", None) or str(error)
        raise UserError(_broken(path, line, what)) from None
    if not isinstance(raw, dict):
        raise UserError(problem("config.not_mapping", file=path, kind=kind_of_value(raw)))
    if not is_small(raw):
        raise UserError(problem("import.too_deep", file=path))
    return Keys({str(key): value for key, value in raw.items()})


def parse(text: str, path: Path) -> ast.Module:
    """The syntax tree of Python source.

    Raises:
        UserError: it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (RecursionError, MemoryError):
        raise UserError(problem("import.too_deep", file=path)) from None
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        raise UserError(_broken(path, line, getattr(error, "msg", None) or str(error))) from None


def is_small(value: Any) -> bool:
    """Whether a value has at most MOST_VALUES parts, DEEPEST deep; an alias counts as often as it is named."""
    count, level = 0, [value]
    for _ in range(DEEPEST):
        following: list[Any] = []
        for item in level:
            parts = list(item.values()) if isinstance(item, dict) else item if isinstance(item, (list, tuple)) else ()
            count += len(parts)
            if count > MOST_VALUES:
                return False
            following += parts
        if not following:
            return True
        level = following
    return False


def text_of(path: Path, absent: str = "import.not_there") -> str:
    """The text of a configuration or a script.

    Raises:
        UserError: it cannot be read, is too large, or is no text.
    """
    limit = LARGEST_NOTEBOOK if path.suffix == ".ipynb" else LARGEST
    try:
        data = read_given(path, limit) if not path.is_file() or path.stat().st_size <= limit else bytes(limit + 1)
    except FileNotFoundError:
        raise UserError(problem(absent, file=path)) from None
    except OSError as error:
        raise UserError(problem("config.unreadable", file=path, reason=error.strerror)) from None
    if len(data) > limit:
        raise UserError(problem("import.too_large", file=path, limit=f"{limit / 2**20:g}"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(problem("config.not_utf8", file=path, byte=error.start)) from None
    if "\0" in text:
        raise UserError(problem("config.not_utf8", file=path, byte=text.index("\0")))
    return text


def _shell(text: str, path: Path) -> Keys:
    try:
        return Keys(*flags(text))
    except ValueError as error:
        raise UserError(_broken(path, 0, str(error))) from None


def _notebook(text: str, path: Path) -> ast.Module:
    """The code cells of a notebook, without commands of IPython; a cell that is no Python is left out."""
    try:
        cells = json.loads(text)["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except RecursionError:
        raise UserError(problem("import.too_deep", file=path)) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(problem("import.no_notebook", file=path)) from None
    body: list[ast.stmt] = []
    for source in sources:
        lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!", "?"))]
        try:
            body += parse("\n".join(lines), path).body
        except UserError:
            continue
    return ast.Module(body=body, type_ignores=[])


def _broken(path: Path, line: int, what: str) -> Problem:
    """What is broken, and in which line where that is known."""
    where = say("import.line", line=line) + " " if line else ""
    return problem("import.broken", file=path, where=where, what=" ".join(str(what).split())[:200])
