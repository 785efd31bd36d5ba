"""The works: a model, an adapter and batches, as a configuration that every contender reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

# Contenders without a bar: they take few steps, and only in `full`.
WATCHED = ("items", "histograms", "debug", "foreach")
FEW = (*WATCHED, "heavy")
N_FEW = 4
CORE = ("stock", "plain", "instrumented")


@dataclass(frozen=True)
class Work:
    """One part of the table. LoRA on all linear layers, dropout 0.05, or all weights.

    Attributes:
        model: a name of models.py.
        batch, length: rows and tokens of a micro-batch. All are supervised and none is padding, unless
        answers_only: rows have the lengths of rows.py instead, and only their answers are supervised.
        nf4: whether the frozen weights are 4-bit.
        fp16: whether float16 with loss scaling is computed in, instead of float32.
        bf16: whether bfloat16 is.
        bar: largest step time of the instrumented trainer over the stock Trainer's that is aimed at; of `callback` over
            `weights` where all weights are trained.
        speed_bar: smallest number of supervised tokens a second over the stock Trainer's.
        peak_bar: largest peak memory over the stock Trainer's.
        warm_up, steps: of each contender; those in FEW take N_FEW.
    """

    name: str
    batch: int
    length: int
    r: int = 8
    model: str = "smollm2"
    dropout: float = 0.05
    answers_only: bool = False
    nf4: bool = False
    fp16: bool = False
    bf16: bool = False
    bar: float | None = None
    speed_bar: float | None = None
    peak_bar: float | None = None
    contenders: tuple[str, ...] = CORE
    warm_up: int = 2
    steps: int = 10

    @property
    def title(self) -> str:
        """What is trained on what, in words."""
        wide = "bfloat16" if self.bf16 else "float32 base"
        base = "NF4 base" if self.nf4 else "float16, loss scaling" if self.fp16 else wide
        rows = f"{self.batch} rows of 20 to 400 tokens, answers supervised"
        tokens = rows if self.answers_only else f"{self.batch} x {self.length} tokens"
        trained = "all weights" if self.contenders == ALL_WEIGHTS else f"LoRA r={self.r} on all linears"
        return f"{self.name}: {TITLES[self.model]}, {base}, {tokens}, {trained}"

    def quota(self, contender: str) -> int:
        """Measured steps of a contender."""
        return min(self.steps, N_FEW) if contender in FEW else self.steps


TITLES = {
    "smollm2": "SmolLM2-135M",
    "neox-160m": "GPT-NeoX 160M (random)",
    "llama-1b": "LLaMA 1B (random)",
    "neox-1b": "GPT-NeoX 1B (random)",
    "tiny": "two layers of LLaMA (random)",
}

PAIR = ("stock", "instrumented")
ALL_WEIGHTS = ("weights", "callback")
FULL = ("stock", *WATCHED, "plain", "instrumented", "plain_aten", "aten", "heavy", "floor")
WORKS = {
    work.name: work
    for work in (
        Work("full", 2, 256, bar=0.65, peak_bar=0.80, contenders=FULL),
        Work("real", 8, 0, answers_only=True, speed_bar=3.0, contenders=PAIR, warm_up=1, steps=8),
        Work("nf4", 2, 256, nf4=True, bar=0.70, contenders=PAIR, steps=8),
        Work("neox-fp16", 2, 256, model="neox-160m", fp16=True, bar=0.65, contenders=PAIR, steps=8),
        Work("floor", 2, 256, contenders=("floor", "plain", "instrumented"), steps=6),
        Work("weights", 2, 256, bar=1.05, contenders=ALL_WEIGHTS),
        Work("short", 2, 64),
        Work("tiny", 2, 16, model="tiny", warm_up=1, steps=1),
        Work("tiny-real", 4, 0, model="tiny", dropout=0.0, answers_only=True, warm_up=1, steps=1),
        Work("tiny-weights", 2, 16, model="tiny", contenders=ALL_WEIGHTS, warm_up=1, steps=1),
        Work("tiny-fp16", 2, 16, model="tiny", fp16=True, warm_up=1, steps=1),
    )
}
DEFAULT = ("full", "real", "nf4", "neox-fp16")


def lacking(work: Work, on_gpu: bool) -> str | None:
    """Why a work cannot be measured fairly on this machine, or None.

    Without AVX512-FP16 the stock Trainer's float16 products on a CPU take a hundred times as long.
    """
    if work.model != "neox-160m" or on_gpu:
        return None
    flags = Path("/proc/cpuinfo")
    if flags.exists() and "avx512_fp16" in flags.read_text(encoding="utf-8", errors="replace"):
        return None
    return "the stock Trainer's float16 needs a processor with AVX512-FP16"


def configuration(work: Work, model: Path, rows: Path, out: Path, n_steps: int) -> dict[str, Any]:
    """The run as lora-train reads it; the stock Trainer gets the same values.

    Args:
        model: folder or file of the model.
        rows: what rows.py wrote.
        out: the run folder.
        n_steps: of the whole run.
    """
    return {
        "model": {"name_or_path": str(model)},
        "quantization": {"load_in_4bit": work.nf4},
        "lora": {"r": work.r, "lora_alpha": 2 * work.r, "lora_dropout": work.dropout, "target_modules": "all-linear"},
        "data": {
            "train": str(rows),
            "format": "prompt_completion" if work.answers_only else "text",
            "cutoff_len": 1024 if work.answers_only else work.length,
            "cache": False,
        },
        "training": {
            "output_dir": str(out),
            "per_device_train_batch_size": work.batch,
            "max_steps": n_steps,
            "learning_rate": 1e-4,
            "save_strategy": "no",
            "logging_steps": 10,
            "fp16": work.fp16,
            "bf16": work.bf16,
        },
    }
