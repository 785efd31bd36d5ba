"""What lies beside a trainer_state.json and says what the run was set to: adapter_config.json and the Trainer's README.

training_args.bin, which has everything, is a pickle: reading it would run code, and it is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..read.damaged import parse_own_json

README, ADAPTER = "README.md", "adapter_config.json"
LARGEST = 1 << 20
# The Trainer's model card has one of these a line: "- learning_rate: 0.0002".
_LINE = re.compile(r"^[-*]\s+(\w+):\s*(.+?)\s*$", re.MULTILINE)
_SECTION = re.compile(r"^#+\s*Training hyperparameters\s*$(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
CARD = {
    "learning_rate": "learning_rate",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "seed": "seed",
    "num_devices": "num_devices",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "total_train_batch_size": "total_train_batch_size",
    "total_eval_batch_size": "total_eval_batch_size",
    "lr_scheduler_type": "lr_scheduler_type",
    "lr_scheduler_warmup_ratio": "warmup_ratio",
    "lr_scheduler_warmup_steps": "warmup_steps",
    "num_epochs": "num_train_epochs",
    "training_steps": "max_steps",
}
LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "bias")
_OPTIMIZER = re.compile(r"(?:Use\s+)?(?:OptimizerNames\.)?(\w+)", re.IGNORECASE)
_BETAS = re.compile(r"betas=\(?\s*([\d.eE+-]+)\s*,\s*([\d.eE+-]+)")
_EPSILON = re.compile(r"epsilon=([\d.eE+-]+)")


def read_beside(path: Path) -> dict[str, Any]:
    """Settings by our names; empty where nothing lies there or nothing of it can be read.

    Args:
        path: a run's folder, a checkpoint, or its trainer_state.json.
    """
    found: dict[str, Any] = {}
    for folder in reversed(list(_folders(path))):
        found |= _of_adapter(folder / ADAPTER) | _of_card(folder / README)
    return found


def _folders(path: Path) -> Iterator[Path]:
    """The folder itself, the newest checkpoint in it, or the run around a checkpoint; the nearest first."""
    folder = path if path.is_dir() else path.parent
    yield folder
    if folder.name.startswith("checkpoint-"):
        yield folder.parent
    inner = [
        (int(name), one) for one in folder.glob("checkpoint-*") if (name := one.name[len("checkpoint-") :]).isdigit()
    ]
    if inner:
        yield max(inner)[1]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() and path.stat().st_size <= LARGEST else ""
    except (OSError, ValueError):
        return ""


def _of_adapter(path: Path) -> dict[str, Any]:
    try:
        values = parse_own_json(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    found = {f"lora.{key}": values[key] for key in LORA if values.get(key) is not None}
    if isinstance(targets := found.get("lora.target_modules"), list):
        found["lora.target_modules"] = sorted(map(str, targets))
    if base := values.get("base_model_name_or_path"):
        found["model.name_or_path"] = str(base)
    return found


def _of_card(path: Path) -> dict[str, Any]:
    section = _SECTION.search(_text(path))
    if section is None:
        return {}
    found: dict[str, Any] = {}
    for name, text in _LINE.findall(section[1]):
        if name == "optimizer":
            found |= _of_optimizer(text)
        elif name in CARD:
            found[f"training.{CARD[name]}"] = _value(text)
    if found and "training.gradient_accumulation_steps" not in found:  # the card names it only where it is not 1
        found["training.gradient_accumulation_steps"] = 1
    return found


def _of_optimizer(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if match := _OPTIMIZER.match(text):
        found["training.optim"] = match[1].lower()
    if match := _BETAS.search(text):
        found |= {"training.adam_beta1": _value(match[1]), "training.adam_beta2": _value(match[2])}
    if match := _EPSILON.search(text):
        found["training.adam_epsilon"] = _value(match[1])
    return found


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
