"""Runs parts, each in a process group of its own, and writes down how they ended.

DIR holds results.jsonl (a line for the machine, then one for each part as it ends), log.txt (the output of each part,
its middle left out where it is long) and table.txt, each below 16 MiB.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .context import ROOT, SKIPPED
from .parts import DRY_SECONDS, Part

HEAD, TAIL = 64 << 10, 448 << 10
"""Bytes of a part's output that are kept; a dozen parts stay far below 16 MiB."""
LOG_TAIL = 2000  # characters in results.jsonl
ROW_WIDTH, N_FAILURES = 160, 3  # of what the table says of a failed part
NOT_RUN = "not run"
LEAST_SECONDS = 5.0
"""A part is not started for less."""
DRY_JOBS = 2
GOOD = ("ok", "skipped")

Result = dict[str, Any]


class Output:
    """Reads what a process prints and keeps its beginning and its end."""

    def __init__(self, pipe: IO[bytes]):
        self._pipe = pipe
        self._head, self._tail, self._size = bytearray(), collections.deque[bytes](), 0
        self._left_out = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while block := os.read(self._pipe.fileno(), 1 << 16):
            room = HEAD - len(self._head)
            self._head += block[:room]
            if rest := block[room:]:
                self._tail.append(rest)
                self._size += len(rest)
            while self._size > TAIL + (1 << 16):
                gone = len(self._tail.popleft())
                self._size -= gone
                self._left_out += gone

    def text(self) -> str:
        """What was kept; waits a moment for the last words."""
        self._thread.join(timeout=2.0)  # what a child in a session of its own still holds open is not waited for
        middle = f"\n[... {self._left_out:,} bytes left out ...]\n".encode() if self._left_out else b""
        return (bytes(self._head) + middle + b"".join(list(self._tail))).decode("utf-8", "replace")


@dataclass
class Runner:
    """One call of the command.

    Attributes:
        out: DIR.
        work: what the parts share, thrown away by the caller.
        deadline: seconds for all parts together, from now.
    """

    out: Path
    work: Path
    dry: bool
    deadline: float
    results: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._spare = {True: 0.0, False: 0.0}
        self.out.mkdir(parents=True, exist_ok=True)
        for name in ("results.jsonl", "log.txt", "table.txt"):
            (self.out / name).write_text("", encoding="utf-8")

    def run(self, parts: Sequence[Part]) -> int:
        """Runs them in order; setup first and alone. Returns the exit code: 0 if every part ran and was right."""
        first, rest = parts[:1], parts[1:]
        for part in first:
            self._one(part)
        with ThreadPoolExecutor(DRY_JOBS if self.dry else 1) as pool:
            for future in [pool.submit(self._one, part) for part in rest]:
                future.result()
        return int(any(result["status"] not in GOOD for result in self.results))

    def _one(self, part: Part) -> None:
        limit = self._limit(part)
        if limit < LEAST_SECONDS:
            self._keep(part, {"status": NOT_RUN, "seconds": 0.0, "row": "the time was up"}, "")
            return
        before, started = compiled(self.work), time.monotonic()
        status, text = execute(command(part, self.work, limit, self.dry), environment(part, self.work, self.dry), limit)
        seconds = time.monotonic() - started
        self.spend(part, seconds)
        path = self.work / f"{part.name}.json"
        told: Result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if status == "timeout":
            told["row"] = f"killed after {limit:.0f} s"
        elif status == "failed":
            told["row"] = shortened(told.get("failures", [])) or last_line(text)
        told.setdefault("numbers", {})["compiled"] = compiled(self.work) - before
        self._keep(part, {"status": status, "seconds": round(seconds, 1), "limit": round(limit, 1), **told}, text)

    def spend(self, part: Part, seconds: float) -> None:
        """What a part left over is for those after it; of a part of correctness for the others of that kind as well."""
        self._spare[False] += part.seconds - seconds
        if part.correctness:
            self._spare[True] += part.seconds - seconds

    def _limit(self, part: Part) -> float:
        left = self.deadline - (time.monotonic() - self._started)
        own = DRY_SECONDS if self.dry else part.seconds + max(0.0, self._spare[part.correctness])
        return min(own, left)

    def _keep(self, part: Part, result: Result, text: str) -> None:
        result = {"part": part.name, **result, "log_tail": text[-LOG_TAIL:]}
        with self._lock:
            self.results.append(result)
            write_line(self.out / "results.jsonl", result)
            with (self.out / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"==== {part.name}: {result['status']}, {result['seconds']} s\n{text}\n")
            print("\n".join(rows_of(result)), flush=True)
            if result["status"] in ("failed", "timeout"):
                print(indented(text[-LOG_TAIL:]), flush=True)

    def table(self, parts: Sequence[Part]) -> str:
        """All rows in the order of the parts."""
        found = {result["part"]: result for result in self.results}
        return "\n".join(line for part in parts for line in rows_of(found[part.name]))


def command(part: Part, work: Path, limit: float, dry: bool) -> list[str]:
    """How a part is started. It is told to end a moment before it would be killed."""
    until = time.time() + limit - min(3.0, limit / 10)
    words = [sys.executable, "-m", "benchmarks.gpu.child", part.name, str(work), f"{until:.1f}"]
    return words + ["--dry"] * dry


def environment(part: Part, work: Path, dry: bool) -> dict[str, str]:
    """Of a part's process: the packages that setup installed first, one Triton cache, nothing from a hub."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    (work / "tmp").mkdir(exist_ok=True)
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(work / "site"), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(work / "triton"),
        "XDG_CACHE_HOME": str(work / "cache"),
        "TMPDIR": str(work / "tmp"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LORA_TRAIN_LANG": "en",
        "OMP_NUM_THREADS": "1" if dry else "2",
        **part.environment,
    }
    return inherited | own | ({"TRITON_INTERPRET": "1"} if dry and part.interprets else {})


def execute(words: Sequence[str], variables: dict[str, str], limit: float) -> tuple[str, str]:
    """Runs a command in a process group of its own and kills the group when the command ends or its time is up.

    Returns:
        `ok`, `failed`, `skipped` or `timeout`, and its output.
    """
    process = subprocess.Popen(
        words, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    output = Output(process.stdout)
    try:
        code = process.wait(limit)
        status = "ok" if code == 0 else "skipped" if code == SKIPPED else "failed"
    except subprocess.TimeoutExpired:
        status = "timeout"
    finally:
        kill_group(process)
    return status, output.text()


def kill_group(process: subprocess.Popen) -> None:
    """Kills the process and whatever it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def compiled(work: Path) -> int:
    """Entries of the Triton cache."""
    cache = work / "triton"
    return sum(1 for _ in cache.iterdir()) if cache.is_dir() else 0


def rows_of(result: Result) -> list[str]:
    """The table's lines of a part."""
    row = f"{result['part']:<10} {result['status']:<8} {result['seconds']:>6.1f} s  {result.get('row', '')}"
    return [row.rstrip(), *(f"{'':<30}{line}" for line in result.get("lines", []))]


def shortened(failures: Sequence[str]) -> str:
    """The first failures; all of them are in results.jsonl."""
    words = [failure[:ROW_WIDTH] for failure in failures[:N_FAILURES]]
    return "; ".join(words) + (f"; and {len(failures) - N_FAILURES} more" if len(failures) > N_FAILURES else "")


def indented(text: str) -> str:
    return "\n".join(f"    | {line}" for line in text.splitlines())


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def write_line(path: Path, value: Any) -> None:
    """Appends one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
