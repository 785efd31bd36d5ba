"""Dockerfile and environment.yml: no image is built here, so every instruction is looked at and every file is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import yaml

from .conftest import ROOT

INSTRUCTIONS = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction, lines that go on put together."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    joined = text.replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def copied() -> list[str]:
    return [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]


def test_every_instruction_is_known_and_in_order():
    words = [word for word, _ in instructions()]
    assert set(words) <= INSTRUCTIONS
    assert words[0] == "FROM"
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert words.count("ENTRYPOINT") == words.count("CMD") == 1
    for word, rest in instructions():
        if word in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(part, str) for part in json.loads(rest))  # as a list: signals reach the command
        if word == "FROM":
            assert re.fullmatch(r"\S+:[\w.-]+", rest)
            assert not rest.endswith(":latest")


def test_layers_are_small_and_pinned():
    for word, rest in instructions():
        if word != "RUN":
            continue
        if "apt-get install" in rest:
            assert "apt-get update" in rest
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        for command in re.findall(r"pip install[^&]*", rest):
            assert "--no-cache-dir" in command
            assert "-c constraints.txt" in command


def test_what_is_copied_is_there_and_not_ignored():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    assert ignore[0] == "*"
    assert set(copied()) == let_in
    assert [name for name in let_in if not (ROOT / name).exists()] == []


def test_the_copied_files_are_all_that_installing_reads(tmp_path):
    """What setup.py and pyproject.toml name lies in the folder that is left after .dockerignore."""
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("*.so", "__pycache__")
            )
        else:
            shutil.copy(source, tmp_path / name)
    listed = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", listed.stdout.split()[-1])


def test_the_conda_recipe_names_what_is_there():
    recipe = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [part["pip"] for part in recipe["dependencies"] if isinstance(part, dict)]
    assert recipe["name"] == "lora-train"
    assert "pip" in recipe["dependencies"]
    assert pip == ["--constraint constraints.txt", ".[gguf]"]
    assert (ROOT / "constraints.txt").is_file()
