"""What a name in a configuration means: a path or a hub id, a tracker, a package that is there. Imports no pydantic."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

# Trackers that accelerate drives, by their names there -> the module each needs; azure_ml speaks MLflow.
TRACKERS = {
    "aim": "aim",
    "azure_ml": "azureml.mlflow",
    "clearml": "clearml",
    "comet_ml": "comet_ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(name: str) -> int | None:
    """The step in a checkpoint folder's name; None for another folder."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def is_path(name: str) -> bool:
    """Whether a name means a file or folder on this machine rather than a hub id.

    A hub id is `name` or `owner/name`; whatever exists here, starts like a path or ends in a data file's
    extension is a path.
    """
    return (
        os.path.exists(name)
        or name.startswith((".", "/", "~", "\\"))
        or name.endswith((".gguf", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz"))
        or not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name)
    )


def at_home(name: str) -> Path:
    """The path of a name that may begin with ~; where nobody is called so it stays as it is."""
    return Path(os.path.expanduser(name))  # pathlib's raises RuntimeError there


def trackers_wanted(report_to: str | list[str]) -> list[str]:
    """The trackers that training.report_to names; `all` are those that are installed."""
    names = [report_to] if isinstance(report_to, str) else report_to
    names = [name for name in names if name != "none"]
    if "all" in names:
        names = [name for name in TRACKERS if name != "azure_ml" and is_installed(TRACKERS[name])]
    return list(dict.fromkeys(names))


def is_installed(module: str) -> bool:
    """Whether a module can be imported; imports at most its parents. A folder that a tracker left here is none."""
    try:
        return getattr(importlib.util.find_spec(module), "origin", None) is not None
    except ModuleNotFoundError:
        return False
