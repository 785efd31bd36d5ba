"""The project's own tests that need a GPU: `pytest -m gpu -n 8` over the files that have any."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from ..context import ROOT, Context

NEEDS_GPU = re.compile(r"marks?\.gpu|\b(triton_)?device\b")
HANG_SECONDS = 40  # then every thread's stack goes to the log
WORKERS = 8
NOTHING_COLLECTED = 5


def run(context: Context) -> str:
    """Runs them; in a dry run they are collected, and skipped with their reason."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if needs_gpu(path))
    report = context.folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0" if context.dry else str(WORKERS), "-q"]
    command += ["--tb=short", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={HANG_SECONDS}"]
    done = subprocess.run([*command, f"--junitxml={report}", *files], cwd=ROOT, check=False)
    suite = ElementTree.parse(report).getroot()[0]
    n = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    n["passed"] = n["tests"] - n["failures"] - n["errors"] - n["skipped"]
    context.number(**n)
    for case in suite:
        if any(child.tag in ("failure", "error") for child in case):
            context.line(f"{case.get('classname')}::{case.get('name')}"[:160])
    context.check(done.returncode == 0, f"pytest ends with {done.returncode}")
    context.check(n["tests"] > 0 and n["passed"] + (n["skipped"] if context.dry else 0) > 0, "some tests ran")
    row = f"{n['passed']} passed, {n['failures']} failed, {n['errors']} errors, {n['skipped']} skipped"
    return row


def needs_gpu(path) -> bool:
    """Whether a test file has tests with that mark."""
    return NEEDS_GPU.search(path.read_text(encoding="utf-8")) is not None
