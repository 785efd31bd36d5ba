"""The files of a checkpoint, and whether their SHA-256 is that of what was written.

    checkpoint-500/SHA256SUMS        "<64 hex digits>  <file>" for every other file; `sha256sum -c SHA256SUMS` reads it

Checkpoints of releases that wrote no sums are read without.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container
from pathlib import Path

from ...instrument.messages import say
from ...instrument.read.files import open_own
from ..errors import reason

ADAPTER = "adapter_model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"
SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS of the files of a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files), encoding="utf-8")


def sha256_of(path: Path) -> str:
    """64 hex digits of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def wrong_sum(folder: Path, only: Container[str] = ()) -> str:
    """The first file, or of some files, that is not as it was written; empty if all are, or nobody noted how."""
    sums = folder / SUMS
    if not sums.exists():
        return ""
    if not any((folder / name).exists() for name in (OPTIMIZER, STATE)):
        return ""  # no checkpoint of ours: somebody else's list
    try:
        with open_own(sums) as file:
            lines = file.read().decode("ascii", errors="replace").splitlines()
    except OSError as error:
        return say("saved.unreadable", file=SUMS, what=reason(error))
    noted = {match[2]: match[1] for match in map(_LINE.fullmatch, lines) if match}
    if len(noted) < len(lines) or not {ADAPTER, OPTIMIZER, STATE} <= noted.keys():
        return say("saved.damaged", file=SUMS)
    for name, digest in noted.items():
        if only and name not in only:
            continue
        if not (folder / name).is_file():
            return say("saved.missing", file=name)
        if sha256_of(folder / name) != digest:
            return say("saved.damaged", file=name)
    return ""
