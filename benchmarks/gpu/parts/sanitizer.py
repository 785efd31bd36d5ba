"""The small smokes under compute-sanitizer: memcheck and racecheck, side by side.

torch's caching allocator is off, so that memory beside a tensor is nobody's. Without a GPU the same process runs
without the tool.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..context import ROOT, Context, Skip

TOOLS = ("memcheck", "racecheck")
ERROR = 99
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")


def run(context: Context) -> str:
    """Runs both."""
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *PLACES]))
    if tool is None and not context.dry:
        raise Skip("compute-sanitizer is not installed")
    started = [(name, start(context.folder / f"{name}.log", name, tool)) for name in TOOLS]
    for name, process in started:
        try:
            code: int | None = process.wait(max(1.0, context.seconds_left))
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        text = (context.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        print(f"== {name}\n{text}", flush=True)
        summary = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line]
        cases = sum(line.startswith("ok") for line in text.splitlines())
        context.number(**{name: {"exit_code": code, "summary": summary, "cases": cases}})
        ended = "time was up" if code is None else f"exit code {code}"
        context.line(f"{name}: {cases} cases, {ended}; {'; '.join(summary) or 'no summary'}")
        # what was looked at until the time was up was right
        context.check(code == 0 or (code is None and cases > 0), f"{name}: {ended}")
    return "small sizes" + (", without the tool" if tool is None else "")


def start(log: Path, name: str, tool: str | None) -> subprocess.Popen:
    """One tool on the smokes; its output goes to a file."""
    words = [sys.executable, "-m", "benchmarks.gpu.parts.smokes"]
    if tool is not None:
        words = [tool, "--tool", name, "--error-exitcode", str(ERROR), "--print-limit", "20", *words]
    variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(words, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT)
