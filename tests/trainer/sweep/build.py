"""Studies for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lora_train.trainer.sweep.plan import of_folder, write_study
from lora_train.trainer.sweep.study_file import StudyFile, read_study_file

from ...conftest import DATA

BASE = {
    "model": {"name_or_path": "owner/model"},
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "data": {"train": str(DATA), "eval": str(DATA), "format": "koalpaca"},
    "training": {"learning_rate": 1.0e-3},
}
RATES = [0.1, 0.2, 0.3, 0.4]


def written(folder: Path, /, **values: Any) -> Path:
    """A study file; None takes a key out."""
    study = {
        "base": BASE, "folder": str(folder / "study"), "nuisance": {"training.learning_rate": RATES}, "sampler": "grid",
        "steps": 40, "threads": 1,
    } | values  # fmt: skip
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in study.items() if value is not None}))
    return path


def begun(folder: Path, /, **values: Any) -> tuple[StudyFile, list[dict[str, Any]]]:
    """A study on disk, and the settings of its first round."""
    asked = read_study_file(written(folder, **values))
    found = write_study(asked)
    return of_folder(asked.folder)[0], found["plan"]
