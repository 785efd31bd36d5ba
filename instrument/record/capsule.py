"""An incident on disk: everything that is needed to run the step again.

incidents/step-512/capsule.json           step, configuration, counters, versions, the rows of the step
incidents/step-512/capsule.safetensors    adapter.*, optimizer.*, loss_scale.* before the step; the rows' tokens
incidents/step-512/diagnosis.json         what was wrong and what helps (detect.Diagnosis)
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..constants import MIB
from ..read.files import write_text
from ..read.store import SCHEMA_VERSION

INCIDENTS = "incidents"
_TENSORS, _FACTS, _DIAGNOSIS = "capsule.safetensors", "capsule.json", "diagnosis.json"


def incident_folder(run_dir: Path, step: int, start: int) -> Path:
    """incidents/step-<n>; if another start collapsed there already, step-<n>.start-<k>, and so on."""
    folder = run_dir / INCIDENTS / f"step-{step}"
    again = (f"{folder.name}.start-{start}" + (f".{n}" if n else "") for n in itertools.count())
    names = map(folder.with_name, itertools.chain([folder.name], again))
    return next(free for free in names if not (free / _DIAGNOSIS).exists())


def write_capsule(folder: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Writes the tensors, then the facts, which make the capsule whole; or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (_TENSORS + ".tmp")
    try:
        save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, partial)
        partial.replace(folder / _TENSORS)
        write_text(folder / _FACTS, json.dumps({"schema_version": SCHEMA_VERSION, **facts}, ensure_ascii=False) + "\n")
    except BaseException:
        partial.unlink(missing_ok=True)
        if not (folder / _FACTS).exists():
            (folder / _TENSORS).unlink(missing_ok=True)
        raise


def write_diagnosis(folder: Path, diagnosis: Mapping[str, Any]) -> None:
    """Writes diagnosis.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _DIAGNOSIS, json.dumps(diagnosis, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def size_mib(folder: Path) -> float:
    """Size of an incident on disk."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB
