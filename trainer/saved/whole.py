"""Whether a checkpoint is whole: every file there, its SHA-256 as it was written, the state understood, no NaN.

    checkpoint-500/SHA256SUMS        "<64 hex digits>  <file>" for every other file; `sha256sum -c SHA256SUMS` reads it

Checkpoints of releases that wrote no sums are read without. Only who resumes or replays reads the sums.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ...instrument.messages import say
from ...instrument.read.files import open_own
from .state import STATE, Torn, read_state

ADAPTER = "adapter_model.safetensors"
OPTIMIZER = "optimizer.safetensors"
SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS of the files of a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files), encoding="utf-8")


def what_is_torn(folder: Path) -> str:
    """What keeps a checkpoint from being whole and healthy; empty if nothing."""
    try:
        for name in (ADAPTER, OPTIMIZER, STATE):
            if not (folder / name).is_file():
                return say("saved.missing", file=name)
        return wrong_sum(folder) or (read_state(folder) and "") or _not_finite(folder)
    except Torn as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


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
    with open_own(sums) as file:
        lines = file.read().decode("ascii", errors="replace").splitlines()
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


def _not_finite(folder: Path) -> str:
    """The first tensor with a NaN or an infinity; empty if there is none."""
    for file in (ADAPTER, OPTIMIZER):
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (no mapping)
                    value = tensors.get_tensor(name)
                    if value.is_floating_point() and not value.isfinite().all():
                        return say("saved.not_finite", file=file, name=name)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            return say("saved.unreadable", file=file, what=error)
    return ""
