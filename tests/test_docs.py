"""The documentation says what is there: links, anchors, commands, paths and rooms exist, and the site builds.

Nothing here asks a network: addresses of other hosts are not followed.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from lora_train.trainer.cli import VERBS

from .conftest import ROOT

DOCS = ROOT / "docs"
READMES = [ROOT / "README.md", ROOT / "README.ko.md"]
FOR_READERS = [*READMES, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY"))]
PAGES = sorted(DOCS.rglob("*.md"))
# What has been renamed since stays in the record of what changed.
CURRENT = [page for page in [*FOR_READERS, *PAGES] if page.name != "CHANGELOG.md"]
README_LINES, README_ROWS = 160, 8
TOP = ("kernels", "instrument", "trainer", "benchmarks", "tests", "examples", "docs")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", [*FOR_READERS, *PAGES], ids=name)
each_current = pytest.mark.parametrize("page", CURRENT, ids=name)


def prose(page: Path) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def code(page: Path) -> str:
    """What stands in backticks, in a line or in blocks of commands."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose(page))])


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code forges make them: lower case, no punctuation, hyphens for spaces."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+)$", prose(page), flags=re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).strip().lower())
        anchor = base = words.replace(" ", "-")
        n = 0
        while anchor in found:
            n += 1
            anchor = f"{base}-{n}"
        found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """Targets of links and pictures that lie in the repository."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@each_page
def test_every_link_leads_to_a_page_and_a_heading(page):
    lost = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            lost.append(target)
    assert lost == []


@each_current
def test_every_path_that_is_named_exists(page):
    named = re.findall(rf"(?<![\w./])((?:{'|'.join(TOP)})/[\w./-]*\w/?)", code(page), flags=re.ASCII)
    assert [path for path in named if not (ROOT / path).exists()] == []


@each_current
def test_every_command_that_is_named_exists(page):
    text = code(page)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z][a-z-]*)", text, flags=re.MULTILINE)) - targets == set()
    verbs = set(re.findall(r"^(?:\$ |.*&& )?lora-train ([a-z]+)\b", text, flags=re.MULTILINE))
    assert verbs - VERBS.keys() == set()
    modules = re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", text)
    files = [ROOT / module.replace(".", "/") for module in modules]
    assert [name(file) for file in files if not (file.with_suffix(".py").exists() or file.is_dir())] == []


@pytest.mark.parametrize("page", READMES, ids=name)
def test_a_readme_keeps_to_its_length_and_its_one_table(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 1
    head_and_rule = 2
    assert len(tables[0].splitlines()) - head_and_rule <= README_ROWS


@pytest.mark.parametrize(
    ("page", "heading"), [(READMES[0], "Two commands"), (READMES[1], "명령 두 가지")], ids=["en", "ko"]
)
def test_two_commands_are_two(page, heading):
    section = re.search(rf"^## {heading}\n(.*?)^## ", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert section
    (block,) = re.findall(r"^```\n(.*?)^```", section[1], flags=re.DOTALL | re.MULTILINE)
    assert [line.split()[:2] for line in block.splitlines()] == [["lora-train", "--config"], ["lora-train", "explain"]]


@pytest.mark.parametrize("top", ["kernels", "instrument", "trainer"])
def test_the_rooms_of_the_architecture_are_the_folders(top):
    told = re.findall(rf"^\| `{top}/([\w/]+)/` \|", (DOCS / "architecture.md").read_text(), flags=re.MULTILINE)
    folders = [path.parent.relative_to(ROOT / top).as_posix() for path in (ROOT / top).glob("*/**/__init__.py")]
    assert sorted(told) == sorted(folders)


def test_every_page_is_in_the_menu_of_the_site():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    told = set(re.findall(r"[\w./-]+\.md", str(settings["nav"])))
    assert told == {page.relative_to(DOCS).as_posix() for page in PAGES}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly in a folder of its own."""
    if sys.version_info < (3, 11):
        pytest.skip("Zensical needs Python 3.11")
    assert importlib.util.find_spec("zensical"), "not installed: it comes with the extra `dev`"
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "site"


def test_the_site_builds_strictly_and_has_every_page(site):
    for page in PAGES:
        path = page.relative_to(DOCS).with_suffix("")
        built = site / path.parent / "index.html" if path.name == "index" else site / path / "index.html"
        assert built.is_file(), name(page)


def test_the_site_fetches_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//',
            page.read_text(encoding="utf-8"),
        )
        assert fetched == [], page
