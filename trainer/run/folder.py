"""The run folder: where a run goes, what it resumes from, and the record of what it ran on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import platform
import re
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...instrument.messages import say
from ...instrument.read.files import write_text
from ...instrument.read.store import METRICS, SCHEMA_VERSION, file_order, read_metrics, stats_files
from ..config.names import at_home
from ..config.schema import Config
from ..errors import UserError, problem
from ..model.load import trainable
from ..saved.state import LARGEST

if TYPE_CHECKING:
    from peft import PeftModel

RECORDED_PACKAGES = (
    "lora-vitals", "torch", "triton", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors",
    "datasets", "tokenizers", "numpy",
)  # fmt: skip

# What a run writes into its folder, which may be one that holds other things too.
_WRITTEN = (
    ".lock", "*.json", "*.jsonl", "*.yaml", "stats/*", "rows/*", "evaluations/*", "adapter/*", "checkpoint-*/*",
    "incidents/*/*",
)  # fmt: skip


def holds_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return (folder / METRICS).exists() or (folder / "config.yaml").exists()


def family(output_dir: str) -> list[Path]:
    """The runs of one output_dir: output_dir, output_dir-2, ..., oldest first."""
    base = at_home(output_dir)
    numbered = re.compile(re.escape(base.name) + r"-(\d+)")
    runs = [(1, base)]
    if base.parent.is_dir():
        for path in base.parent.iterdir():
            match = numbered.fullmatch(path.name)
            if match and int(match[1]) > 1:
                runs.append((int(match[1]), path))
    return [path for _, path in sorted(runs) if holds_run(path)]


def fresh_folder(output_dir: str) -> Path:
    """output_dir itself, or output_dir-<n> with n above all that hold a run; nothing is overwritten."""
    base, runs = at_home(output_dir), family(output_dir)
    if not runs:
        return base
    newest = 1 if runs[-1] == base else int(runs[-1].name.rpartition("-")[2])
    return base.with_name(f"{base.name}-{newest + 1}")


def refuse_pipes(folder: Path) -> None:
    """Looks for what stands where a run writes files and never ends: a pipe would wait for whoever reads.

    Raises:
        UserError: names it.
    """
    for path in sorted(path for pattern in _WRITTEN for path in folder.glob(pattern)):
        if path.exists() and not path.is_file() and not path.is_dir():
            what = f"{say('file.no_file')} ({path})"
            raise UserError(problem("run.cannot_write", folder=folder, what=what))


def next_start(folder: Path, start: int) -> int:
    """The number of a start that goes on from a checkpoint of `start`: above all that have recorded anything here."""
    rows = read_metrics(folder) if (folder / METRICS).is_file() else []
    seen = [row["start"] for row in rows if isinstance(row.get("start"), int) and row["start"] < LARGEST]
    seen += [file_order(path)[0] for path in stats_files(folder)]
    return 1 + max([start, *seen])


def write_config(folder: Path, config: Config) -> None:
    """Writes the resolved config.yaml; an earlier, different one is kept as config.<n>.yaml."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    path = folder / "config.yaml"
    if path.exists() and path.read_bytes() != text.encode():
        names = (folder / f"config.{n}.yaml" for n in itertools.count())
        shutil.copy2(path, next(free for free in names if not free.exists()))
    write_text(path, text)


def weights_fingerprint(model: PeftModel) -> str:
    """16 hex digits of the trained weights as they are now: runs whose digits are the same begin as the same model."""
    digest = hashlib.sha256()
    for name, weight in sorted(trainable(model).items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_env(folder: Path, facts: dict[str, Any]) -> None:
    """Writes env.json: versions, hardware, and what the caller knows of model and data."""
    import torch

    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    env = {
        "schema_version": SCHEMA_VERSION,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        **facts,
    }
    write_text(folder / "env.json", json.dumps(env, indent=1, ensure_ascii=False) + "\n")
