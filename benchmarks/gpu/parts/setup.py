"""Installs into WORK/site what is missing: wheels of .wheels, then lora-train itself from the tree.

Nothing outside WORK is touched, and no network is used. The tree is copied first, so that nothing is built in it. Where
the product cannot be built (no setuptools, no pip), links to the three folders stand in for it: everything but the C
extensions of the CPU is there then.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..context import ROOT, Context
from ..wheels import FOLDER

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps", "--no-compile")
FOLDERS = ("kernels", "instrument", "trainer")
SOURCES = (*FOLDERS, "setup.py", "pyproject.toml", "README.md", "LICENSE")
# what other wheels want in at least the release that is carried; newer ones of these break nobody
AT_LEAST = ("typing_extensions", "typing_inspection", "setuptools")
IMPORTED = ("torch", "triton", "transformers", "peft", "accelerate", "bitsandbytes", "lora_train.trainer.config.schema")


def run(context: Context) -> str:
    """Installs, then imports everything once."""
    site = context.work / "site"
    site.mkdir()
    carried = install_wheels(site)
    how = install_product(site, context.work)
    lacking = [name for name in dependencies() if version_of(name, site) is None]
    context.check(not lacking, f"required packages are missing: {', '.join(lacking)} (make gpu-wheels)")
    code = "; ".join(f"import {name}" for name in IMPORTED)
    code += "; from lora_train.kernels import cpu; print('C extensions', cpu.AVAILABLE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    context.check(done.returncode == 0, f"imports: {done.stderr.strip().splitlines()[-1:]}")
    context.number(carried=carried, product=how)
    return f"{len(carried)} wheels from {FOLDER.name}; lora-train {how}; {done.stdout.strip()}"


def install_wheels(site: Path) -> list[str]:
    """Installs those whose package is missing, or older than others need it."""
    chosen = []
    for wheel in sorted(FOLDER.glob("*.whl")):
        name, carried = wheel.name.split("-")[:2]
        present = version_of(name, site)
        if present is None or (name in AT_LEAST and number(present) < number(carried)):
            chosen.append(wheel)
    if chosen:
        pip(*map(str, chosen), "--target", str(site))
    return [wheel.name for wheel in chosen]


def install_product(site: Path, work: Path) -> str:
    """Builds and installs the tree; says how."""
    source = work / "source"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(path, source / name)
    # a compiler for each of the C files at once
    settings = work / "build.cfg"
    settings.write_text(f"[build_ext]\nparallel = {os.cpu_count()}\n", encoding="utf-8")
    variables = {"DIST_EXTRA_CONFIG": str(settings)}
    try:
        pip("--no-build-isolation", "--target", str(site), ".", folder=source, variables=variables)
    except subprocess.CalledProcessError as error:
        print(error.stdout, flush=True)
        link_product(site)
        return "linked, because pip could not install it"
    return "installed"


def link_product(site: Path) -> None:
    """Puts links to the folders where an installed product would be, with the metadata it asks for."""
    package = site / "lora_train"
    package.mkdir(exist_ok=True)
    for path in (*(ROOT / name for name in FOLDERS), ROOT / "typings" / "lora_train" / "__init__.py"):
        if not (package / path.name).exists():
            (package / path.name).symlink_to(path)
    metadata = site / "lora_vitals-0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lora-vitals\nVersion: 0\n", encoding="utf-8")


def pip(*words: str, folder: Path = ROOT, variables: dict[str, str] | None = None) -> None:
    """`pip install` without an index; its output is in the error if it fails."""
    subprocess.run(
        [*PIP, *words], cwd=folder, env={**os.environ, **(variables or {})}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip


def dependencies() -> list[str]:
    """Names of what pyproject.toml requires."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.partition("\ndependencies = [\n")[2].partition("\n]")[0]
    return re.findall(r'^ *"([A-Za-z0-9_-]+)', listed, re.MULTILINE)


def version_of(name: str, site: Path) -> str | None:
    """The release of a package that this Python finds, `site` included."""
    found = next(iter(importlib.metadata.distributions(name=name, path=[str(site), *sys.path])), None)
    return None if found is None else found.version


def number(version: str) -> tuple[int, ...]:
    """1.10.2 as numbers, for comparing."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
