"""Counts and prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lora_train.trainer.checks.tips import TIPS, Outlook
from lora_train.trainer.config.schema import Config

from . import __doc__ as description

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "tests" / "benchmarks" / "imports.jsonl"
OURS = ("koalpaca.yaml", "examples/koalpaca*.yaml", "examples/sentiment.yaml")
NEEDS = {
    "few_updates": "n_steps", "batch_over_data": "units", "many_epochs": "steps_per_epoch",
    "dear_evaluation": "eval_tokens", "late_save": "n_steps", "no_choice": "n_evals", "fp16": "has_bf16",
}  # fmt: skip
"""What of the outlook a check is not asked without."""


def public() -> Iterator[tuple[str, Config, Outlook]]:
    """Name, configuration and what is known of the run, of each public configuration that is imported."""
    for line in KEPT.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "values" in row:
            yield f"{row['repository']} {row['name']}", *made(row["values"])


def made(values: dict[str, Any]) -> tuple[Config, Outlook]:
    """The configuration of a row's values."""
    unit, amount = values["steps"]
    kind, warm_up = values["warmup"]
    training: dict[str, Any] = {
        "learning_rate": values["rate"], "lr_scheduler_type": values["schedule"], "bf16": values["precision"] == "bf16",
        "fp16": values["precision"] == "fp16", "gradient_accumulation_steps": values["batch"],
        "per_device_train_batch_size": 1, "save_strategy": "no",
        "warmup_steps" if kind == "steps" else "warmup_ratio": warm_up,
        "max_steps" if unit == "steps" else "num_train_epochs": amount,
    }  # fmt: skip
    if values["schedule"] == "warmup_stable_decay":
        training["lr_scheduler_kwargs"] = {"num_decay_steps": 1}
    sections = {"model": {"name_or_path": "owner/model"}, "data": {"train": "owner/data"}, "training": training}
    n_steps = int(amount) if unit == "steps" else None
    return Config.model_validate(sections), Outlook(n_steps=n_steps, units_per_step=values["batch"], has_bf16=True)


def ours() -> Iterator[tuple[str, Config, Outlook]]:
    """Our own configurations; of one whose rows lie here the outlook is known."""
    for pattern in OURS:
        for path in sorted(ROOT.glob(pattern)):
            config = Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            yield path.relative_to(ROOT).as_posix(), config, outlook(config)


def outlook(config: Config) -> Outlook:
    """What the rows of a file here say, without a tokenizer: letters stand for tokens."""
    training = config.training
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    train, evaluated = _rows(config.data.train), _rows(config.data.eval)
    if train is None:
        steps = training.max_steps if training.max_steps > 0 else None
        return Outlook(n_steps=steps, units_per_step=per_step, has_bf16=False)
    rows = train[: config.data.limit] if config.data.limit else train
    per_epoch = -(-len(rows) // per_step)
    n_steps = training.max_steps if training.max_steps > 0 else int(-(-training.num_train_epochs * per_epoch // 1))
    by_epoch = training.eval_strategy == "epoch"
    every = per_epoch if by_epoch else training.eval_steps or training.logging_steps
    n_evals = int(-(-n_steps // max(every, 1))) if training.eval_strategy != "no" else 0
    letters = sum(map(len, evaluated[: config.data.eval_limit])) if evaluated else None
    return Outlook(
        n_steps, per_epoch, len(rows), per_step, None, sum(map(len, rows)), letters, n_evals, training.save_steps, False
    )


def _rows(source: str | list[str] | None) -> list[str] | None:
    path = ROOT / source if isinstance(source, str) else None
    return path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else None


def counted(configs: Sequence[tuple[str, Config, Outlook]]) -> dict[str, tuple[int, list[tuple[str, str]]]]:
    """Of each check: of how many it was asked, and where it fired with what."""
    found: dict[str, tuple[int, list[tuple[str, str]]]] = {}
    for name, check in TIPS.items():
        asked = [one for one in configs if name not in NEEDS or getattr(one[2], NEEDS[name]) is not None]
        fired = [(where, said) for where, config, known in asked if (said := check(config, known)) is not None]
        found[name] = len(asked), fired
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tips", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--read", action="store_true", help="print every firing")
    options = parser.parse_args(arguments)
    for title, configs in (("our examples", list(ours())), ("public configurations", list(public()))):
        print(f"{title}: {len(configs)}")
        for name, (asked, fired) in counted(configs).items():
            share = f"{100 * len(fired) / asked:5.1f}%" if asked else "    -"
            print(f"  {name:<16} {len(fired):>4} of {asked:>4}  {share}")
            for where, said in fired if options.read else ():
                print(f"      {where}: {said}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
