"""Reads every LoRA configuration below the given folders with `lora-train import` and with independent.py.

    python -m benchmarks.imports axolotl=FOLDER LLaMA-Factory=FOLDER [--write FILE] [--dry-run]

A folder is an unpacked source archive: `pip download --no-deps --no-binary :all: axolotl==0.19.0` and
`llamafactory==0.9.5` have the examples of their repositories. With --dry-run each configuration that is imported runs
through `lora-train --dry-run` on a model of two layers and a few rows of its format; a target that this model does not
have is replaced, which is said. The table is printed; --write keeps a line of JSON for each file, without the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.config.schema import Config
from lora_train.trainer.errors import UserError
from lora_train.trainer.importer.recognize import read_foreign
from lora_train.trainer.importer.write import as_yaml

from .dry_runs import DryRuns
from .independent import facts, is_lora, kind

REPLACED = ("model.name_or_path=owner/model", "model.revision=null", "data.train=owner/data")


def ours(config: Config) -> dict[str, Any]:
    """The facts of a configuration of ours, by independent.py's names."""
    training, lora, data = config.training, config.lora, config.data
    targets, steps = lora.target_modules, training.warmup_steps
    return {
        "rank": lora.r,
        "alpha": float(lora.lora_alpha),
        "targets": sorted(targets) if isinstance(targets, list) else targets,
        "rate": training.learning_rate,
        "batch": training.per_device_train_batch_size * training.gradient_accumulation_steps,
        "steps": ["steps", training.max_steps] if training.max_steps > 0 else ["epochs", training.num_train_epochs],
        "schedule": training.lr_scheduler_type,
        "warmup": ["steps", steps] if steps else ["ratio", training.warmup_ratio],
        "length": data.cutoff_len,
        "precision": "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32",
        "mask": "all" if data.train_on_inputs or data.format == "text" else "answers",
    }


def judged(path: Path, folder: Path) -> dict[str, Any]:
    """What import makes of one file: a row of the table."""
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    row: dict[str, Any] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "kind": kind(keys)}
    draft = read_foreign(path)
    if draft.refused:
        return row | {"verdict": "refused", "why": draft.refused}
    row["without"] = sorted(left.key for left in draft.left if left.matters)
    row["unknown"] = sorted(left.key for left in draft.left if left.weight == "unknown")
    output = folder / "imported.yaml"
    output.write_text(as_yaml(draft, path.name), encoding="utf-8")
    try:
        config = read_config(output, REPLACED)
    except UserError as error:
        return row | {"verdict": "not accepted", "why": [problem.error for problem in error.problems]}
    found, expected = ours(config), facts(keys)
    row["different"] = {name: [expected[name], found[name]] for name in expected if expected[name] != found[name]}
    row["verdict"] = "imported, with differences" if row["without"] else "imported"
    return row | {"values": found}


def table(rows: list[dict[str, Any]]) -> str:
    """Counts by repository, kind and verdict."""
    counts = Counter((row["repository"], row["kind"], row["verdict"]) for row in rows)
    lines = [
        f"{repository:<15} {kind:<13} {verdict:<28} {n:4}" for (repository, kind, verdict), n in sorted(counts.items())
    ]
    wrong = [row for row in rows if row.get("different")]
    lines += [f"different from the independent reading: {row['name']}: {row['different']}" for row in wrong]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="REPOSITORY=FOLDER")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        dry_runs = DryRuns(Path(scratch)) if arguments.dry_run else None
        for repository, _, folder in (word.partition("=") for word in arguments.folders):
            for path in sorted(path for path in Path(folder).rglob("*.y*ml") if "examples" in path.parts):
                keys = yaml.safe_load(path.read_text(encoding="utf-8"))
                if not isinstance(keys, dict) or not is_lora(keys):
                    continue
                row = judged(path, Path(scratch))
                if dry_runs is not None and "values" in row:
                    row["dry_run"] = dry_runs.run(Path(scratch) / "imported.yaml")
                name = path.relative_to(folder).as_posix()
                rows.append({"repository": repository, "name": name[name.index("examples/") :], **row})
    print(table(rows))
    if arguments.write:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        arguments.write.write_text(text, encoding="utf-8")
    return 1 if any(row.get("different") or row["verdict"] == "not accepted" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
