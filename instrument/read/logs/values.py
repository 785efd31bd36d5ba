"""One record of a log: {'loss': 1.93, 'epoch': 0.1} as Python, JSON, numpy or torch print it, under one set of names.

Keys of other programs become those of transformers' Trainer (`lr`, `train/loss`, `val_loss`) or, for what only the
columns of metrics.jsonl have (memory, tokens a second), those.
"""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

Record = dict[str, Any]
MOST_STEPS = 2**53
"""Above every count of steps, and exact as a float."""

NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|NaN|NAN|inf|Infinity)"
_WRAPPED = re.compile(rf"(?<![\w'\"])[A-Za-z_][\w.]*\(\s*\[*\s*'?({NUMBER})'?\s*\]*\s*(?:,[^()]*)?\)")
_BARE = re.compile(r"(?<![\w'\".])([-+]?(?:nan|NaN|inf|Infinity)|null|true|false)(?![\w'\".])")
_PAIR = re.compile(rf"['\"]?([A-Za-z_][\w/ .()-]*?)['\"]?\s*[:=]\s*['\"]?({NUMBER}|null|None)['\"]?(?=\s*[,}}\n]|\s*$)")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")
_OF_RUN = re.compile(r"(\d[\d,]*)\s*/\s*(\d[\d,]*)")

STEP_KEYS = ("step", "global_step", "current_steps", "global_step/max_steps", "steps", "iter", "iteration", "_step")
PLANNED_KEYS = ("total_steps", "max_steps")
# What others call a number -> what it is called here; the first that a record has counts.
NAMES = {
    "learning_rate": ("lr", "Learning Rate", "learning rate"),
    "grad_norm": ("gradient_norm", "grad norm", "gnorm"),
    "memory_reserved_gib": (
        "memory/device_reserved (GiB)",
        "memory/device_mem_reserved (GiB)",
        "memory/device_mem_reserved(gib)",
        "memory/device_reserved(gib)",
        "memory(GiB)",
        "peak_memory_reserved",
    ),
    "memory_allocated_gib": (
        "memory/max_allocated (GiB)",
        "memory/max_mem_allocated (GiB)",
        "memory/max_mem_allocated(gib)",
        "memory/max_allocated(gib)",
        "peak_memory_alloc",
    ),
    "tokens_per_second": (
        "tokens_per_second_per_gpu",
        "tokens/train_per_sec_per_gpu",
        "tokens_per_sec",
        "tokens/sec",
        "throughput",
        "Tokens/sec",
    ),
}
_CALLED = {name: ours for ours, names in NAMES.items() for name in names}
# What PPO and online DPO measure of their own samples: no evaluation, for all its name.
OF_SAMPLES = re.compile(r"val/(?:ratio|ratio_var|clipfrac_avg|num_eos_tokens|contain_eos_token)$")
# What tells of a step, where there is no loss: rewards of GRPO, and of PPO its scores.
INSTEAD_OF_LOSS = ("loss", "reward", "objective/scores", "loss/policy_avg", "ppo/mean_scores", "ppo/loss/total")
# Most of a log's letters; a console line with more is no record.
LONGEST = 20_000


def parse(text: str) -> Record | None:
    """The record that a text in braces holds, flat; None where it holds none."""
    if len(text) > LONGEST or (":" not in text and "=" not in text):
        return None
    values = _literal(text)
    if values is None and "(" in text:
        values = _literal(_WRAPPED.sub(r"\1", text))
    if values is None and "\n" in text:
        values = _literal(_WRAPPED.sub(r"\1", text.replace("\n", "")))
    if values is None:
        values = {key.strip(): value for key, value in _PAIR.findall(_WRAPPED.sub(r"\1", text))}
    return canonical(flat(values)) if values else None


def _literal(text: str) -> dict[Any, Any] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(_BARE.sub(_python_word, text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return values if isinstance(values, dict) else None


def _python_word(match: re.Match[str]) -> str:
    word = match.group(1)
    return {"null": "None", "true": "True", "false": "False"}.get(word, f"'{word}'")


def flat(values: dict[Any, Any], prefix: str = "", depth: int = 3) -> Record:
    """Nested mappings as one, their keys joined by `/`."""
    found: Record = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and depth:
            found.update(flat(value, f"{name}/", depth - 1))
        else:
            found[name] = number(value)
    return found


def number(value: Any) -> Any:
    """A float of what is a number, also as text, alone in a list or wrapped in a call; else the value itself."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and _THOUSANDS.fullmatch(value):
        value = value.replace(",", "")
    if isinstance(value, str) and "(" in value:
        value = _WRAPPED.sub(r"\1", value)
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:  # an int of more than 308 digits
        return math.inf if isinstance(value, int) and value > 0 else -math.inf
    except (TypeError, ValueError):
        return value


def canonical(record: Record) -> Record:
    """The record under the names used here; of two keys that mean one thing the first counts."""
    found: Record = {}
    for key, value in record.items():
        name = key.strip()
        name = _CALLED.get(name, name)
        name = name.removeprefix("train/") if name != "train/" else name
        for prefix in ("eval/", "val/", "valid/", "validation/", "val_", "valid_", "validation_"):
            if name.startswith(prefix) and len(name) > len(prefix) and not OF_SAMPLES.match(name):
                name = "eval_" + name.removeprefix(prefix)
        found.setdefault(_CALLED.get(name, name), value)
    for key in STEP_KEYS:
        value = found.get(key)
        if isinstance(value, str) and (parts := _OF_RUN.fullmatch(value.strip())):
            value, total = (float(part.replace(",", "")) for part in parts.groups())
            found.setdefault("max_steps", total)
        if isinstance(value, float) and math.isfinite(value) and 0 <= value < MOST_STEPS:
            found["step"] = value
            break
    else:
        found.pop("step", None)
    if "loss" not in found and "train_runtime" not in found and "train/train_loss" not in record:
        for key in ("train_loss", "train_loss_step"):
            if key in found:
                found["loss"] = found.pop(key)
                break
    return found


def is_summary(record: Record) -> bool:
    """Whether it is the line the Trainer ends with."""
    return "train_runtime" in record


def is_step(record: Record) -> bool:
    """Whether it tells of training steps; GRPO's line may have a reward and no loss, PPO's has none."""
    if is_summary(record):
        return False
    known = next((record[key] for key in INSTEAD_OF_LOSS if key in record), "")
    if known is None:
        return any(isinstance(record.get(name), float) for name in ("grad_norm", "learning_rate"))
    return isinstance(known, float)


def evaluation(record: Record) -> Record:
    """The numbers of an evaluation in a record; a missing eval_loss stays missing, one of null is NaN."""
    found = {key: value for key, value in record.items() if key.startswith("eval_") and isinstance(value, float)}
    if record.get("eval_loss", "") is None and found and not is_step(record):
        found["eval_loss"] = math.nan
    return found


def is_known(record: Record) -> bool:
    """Whether it is a record of training at all."""
    counted = "step" in record and any(isinstance(record.get(key), float) for key in PLANNED_KEYS)
    return counted or is_summary(record) or is_step(record) or bool(evaluation(record))
