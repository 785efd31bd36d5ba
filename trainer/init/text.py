"""A plan as YAML: the keys that people set first, each with what it means."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...instrument.messages import language, say
from ..config.reference import keys
from ..importer.write import commented, in_yaml
from .plan import Plan

COLUMN, LONGEST = 42, 70


def as_yaml(plan: Plan, model: str, data: str, output: Path) -> str:
    """The file.

    Args:
        model, data: names on the hub or paths.
        output: where it will lie; the run's folder is called after it.
    """
    return "\n".join((*_head(output), *_sections(settings_of(plan, model, data, output)))) + "\n"


def settings_of(plan: Plan, model: str, data: str, output: Path) -> dict[str, dict[str, Any]]:
    """The values by section."""
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return {
        "model": {"name_or_path": model},
        "quantization": four_bit if plan.four_bit else {"load_in_4bit": False},
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"},
        "data": {"train": data, "eval_fraction": 0.05, "format": "auto", "cutoff_len": plan.length},
        "training": {
            "output_dir": f"runs/{output.stem}",
            "num_train_epochs": 1,
            "per_device_train_batch_size": plan.rows,
            "gradient_accumulation_steps": plan.accumulation,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.03,
            "bf16": plan.precision == "bf16",
            "fp16": plan.precision == "fp16",
            "gradient_checkpointing": plan.checkpointing,
            "logging_steps": 10,
            "eval_strategy": "steps",
            "eval_steps": 0.1,
            "save_steps": 0.1,
        },
    }


def _head(output: Path) -> Iterator[str]:
    yield say("init.head", output=output)
    config = f"lora-train --config {shlex.quote(str(output))}"
    yield f"#   {config} --dry-run"
    yield f"#   {config}"
    yield f"#   lora-train explain {shlex.quote(f'runs/{output.stem}')}"


def _sections(settings: dict[str, dict[str, Any]]) -> Iterator[str]:
    meanings = {key.name: key.meaning[language()] for key in keys()}
    for section, values in settings.items():
        yield f"{section}:"
        for key, value in values.items():
            yield commented(f"  {key}: {in_yaml(value)}", first_sentence(meanings[f"{section}.{key}"]), COLUMN)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence; of a long one what stands before a colon, bracket or comma."""
    sentence = text.split(". ")[0].removesuffix(".")
    for mark in (": ", " (", "; ", ", "):
        if len(sentence) > LONGEST:
            sentence = sentence.split(mark)[0]
    return sentence
