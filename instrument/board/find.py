"""Finds the runs and studies under a folder. Follows links, each folder once, so that a loop of links ends.

run     a folder of lora-train or InstrumentCallback, of the stock Trainer (a state, a checkpoint's state,
        LLaMA-Factory's log) or of TensorBoard's event files
study   a folder that a sweep was begun in; of the attempts at one trial only the last is a run

A stamp is a digest of the sizes and times of every file that a judgement reads: as long as it is the same, so is the
judgement. Imports no torch, numpy or pandas.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..read.store import METRICS, SITES, STATS

STATE, FACTORY, EVENTS = "trainer_state.json", "trainer_log.jsonl", "events.out.tfevents."
STUDY, CLAIMS, TRIALS = "study.yaml", "claims", "trials"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
ATTEMPT = re.compile(r"(\d{3,})(?:\.(\d+))?(?P<torn>\.tmp)?")
OWN = ("config.yaml", "env.json")
READ = (METRICS, SITES, *OWN, STATE, FACTORY)
INNER = (STATS, "incidents", "evaluations")
"""Folders of a run whose files are read too."""
SKIPPED = {*INNER, CLAIMS, "adapter", "merged", "node_modules", "__pycache__", "site-packages"}


@dataclass(frozen=True)
class Found:
    """A run or a study.

    Attributes:
        id: 16 hex digits of its name: what an address calls it.
        path: where it lies.
        name: its path below the folder that was searched, for people; the folder's own name where it is that itself.
        kind: "run" or "study".
        study: id of the study whose trial it is; empty of others.
        stamp: of its files.
        changed: when one of them was written last, in seconds.
        locked: whether it has a lock, which says for certain whether it goes on.
    """

    id: str
    path: Path
    name: str
    kind: str
    study: str
    stamp: str
    changed: float
    locked: bool


def find_runs(root: Path) -> list[Found]:
    """Every run and study under a folder, by name; what cannot be read is left out."""
    found: list[Found] = []
    seen: set[tuple[int, int]] = set()
    folders: deque[tuple[str, str]] = deque([(str(root), "")])
    links: deque[tuple[str, str]] = deque()
    while folders or links:  # real folders first: a link to one of them is the same run by another name
        path, study = folders.popleft() if folders else links.popleft()
        try:
            facts = os.stat(path)
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(path) as entries:
                inside = {entry.name: entry for entry in entries}
        except OSError:
            continue
        one = _found(root, path, inside, study)
        if one is not None:
            found.append(one)
        if one is not None and one.kind == "study":
            study = one.id
        is_run = one is not None and one.kind == "run"
        for entry in _inner(inside, os.path.basename(path) == TRIALS and bool(study), is_run):
            (links if entry.is_symlink() else folders).append((entry.path, study))
    return sorted(found, key=lambda one: one.name)


def _inner(inside: dict[str, os.DirEntry[str]], is_trials: bool, is_run: bool) -> Iterable[os.DirEntry[str]]:
    """Folders that may hold further runs."""
    if "pyvenv.cfg" in inside:
        return
    last = _last_attempts(inside) if is_trials else None
    for name, entry in sorted(inside.items()):
        if name.startswith(".") or name in SKIPPED or CHECKPOINT.fullmatch(name) or (is_run and name == "runs"):
            continue
        if last is not None and name not in last:
            continue
        try:
            if entry.is_dir():
                yield entry
        except OSError:
            continue


def _last_attempts(names: Iterable[str]) -> set[str]:
    """Of each trial the last attempt; names that are no trial's, whole."""
    last: dict[int, tuple[int, str]] = {}
    others = set()
    for name in names:
        if (match := ATTEMPT.fullmatch(name)) is None:
            others.add(name)
        elif not match["torn"]:
            trial, number = int(match[1]), int(match[2] or 1)
            last[trial] = max(last.get(trial, (0, name)), (number, name))
    return others | {name for _, name in last.values()}


def _found(root: Path, path: str, inside: dict[str, os.DirEntry[str]], study: str) -> Found | None:
    if STUDY in inside and CLAIMS in inside:
        kind, parts = "study", _claims(inside[CLAIMS].path)
        parts.append(inside[STUDY].path)
    else:
        kind, parts = "run", _files(inside)
        if not parts:
            return None
    relative = os.path.relpath(path, root)
    stamp, changed = _stamp(parts)
    return Found(
        id=hashlib.sha256(os.fsencode(relative)).hexdigest()[:16],
        path=Path(path),
        name=readable(os.path.basename(os.path.abspath(path)) if relative == "." else relative),
        kind=kind,
        study=study if kind == "run" else "",
        stamp=stamp,
        changed=changed,
        locked=".lock" in inside,
    )


def readable(text: str) -> str:
    """A name of the file system as text that any encoding takes."""
    return os.fsencode(text).decode("utf-8", "replace")


def _files(inside: dict[str, os.DirEntry[str]]) -> list[str]:
    """What is read of a run; nothing where it is none."""
    ours = METRICS in inside or SITES in inside or all(name in inside for name in OWN)
    states = [] if ours else _states(inside)
    events = [entry.path for name, entry in inside.items() if name.startswith(EVENTS)]
    if not (ours or states or STATE in inside or FACTORY in inside or events):
        return []
    files = [inside[name].path for name in READ if name in inside] + states
    if not files:
        return events
    for name in INNER if ours else ():
        if name in inside:
            files += _below(inside[name].path, 2 if name == "incidents" else 1)
    return files


def _states(inside: dict[str, os.DirEntry[str]]) -> list[str]:
    """The state of the newest checkpoint that has one."""
    numbered = [(int(match[1]), entry) for name, entry in inside.items() if (match := CHECKPOINT.fullmatch(name))]
    for _, entry in sorted(numbered, key=lambda pair: -pair[0]):
        path = os.path.join(entry.path, STATE)
        if os.path.isfile(path):
            return [path]
    return []


def _below(folder: str, depth: int) -> list[str]:
    """A folder and what lies in it."""
    found = [folder]
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found += _below(entry.path, depth - 1) if depth > 1 and entry.is_dir() else [entry.path]
    except OSError:
        pass
    return found


def _claims(folder: str) -> list[str]:
    """What the workers of a study wrote."""
    return _below(folder, 2)


def _stamp(files: Iterable[str]) -> tuple[str, float]:
    """A digest of sizes and times, and the latest time, in seconds."""
    digest, latest = hashlib.sha256(), 0.0
    for path in sorted(files):
        try:
            facts = os.stat(path)
        except OSError:
            continue
        digest.update(f"{os.path.basename(path)} {facts.st_size} {facts.st_mtime_ns}\n".encode("utf-8", "replace"))
        latest = max(latest, facts.st_mtime)
    return digest.hexdigest()[:20], latest
