"""What a step asks of the host: waits, launches, milliseconds beside the GPU's.

Four layers of LLaMA-8B, a float16 base, 2 x 1024 tokens, with statistics and without.
    waits     runtime calls by which the host waits, in a step and in an evaluation; a step is also run in torch's mode
              that raises on any
    host ms   until train_step returns, beginning with nothing to do
    step ms   of steps one behind the other
    GPU ms    the sum of the kernels' times
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...overhead.measure.meter import Counts
from ...overhead.rows import TEXT, excerpt
from ..context import Context
from ..device import HAS_CUDA, kernel_milliseconds, on_device, synchronize
from ..models import TINY, WIDE, Settings, components_of, model_folder, settings
from ..runner import write_line

N_ROWS = 32
WARM_UP, STEPS = 3, 5
WAYS: dict[str, dict[str, Any]] = {"with statistics": {}, "without": {"enabled": False}}


def run(context: Context) -> str:
    """Measures both ways."""
    size, length = (TINY, 32) if context.dry else (WIDE, 1024)
    model = model_folder(context.work, "llama", size, "float16")
    rows = write_rows(context.folder / "rows.jsonl", length)
    found = []
    for way, instrument in WAYS.items():
        values = settings(
            model, context.folder / "run", "fp16", instrument=instrument,
            data={"train": str(rows), "eval": str(rows), "format": "text", "cutoff_len": length, "eval_limit": 4},
            training={"per_device_train_batch_size": 2, "max_steps": 100, "eval_strategy": "steps", "eval_steps": 50},
        )  # fmt: skip
        with on_device():
            found.append(look(context, way, values, size.layers))
    return f"{size.layers} layers, 2 x {length} tokens: host / GPU ms {found[0]} with statistics, {found[1]} without"


def write_rows(path: Path, length: int) -> Path:
    """Rows of text of at least that many tokens."""
    words = TEXT.read_text(encoding="utf-8")
    for index in range(N_ROWS):
        write_line(path, {"text": excerpt(words, index, length)})
    return path


def look(context: Context, way: str, values: Settings, layers: int) -> str:
    """Takes steps and an evaluation of a run apart."""
    from lora_train.trainer.loop.train import train_step

    components, number = components_of(values), iter(range(1, 100))

    def step() -> None:
        train_step(components, components.plan.rows(next(number)))

    with components.recorder.active() if components.recorder else nullcontext():
        for _ in range(WARM_UP):
            step()
        without_waits(context, way, step)
        waits = counted(step)
        waits_evaluating = counted(lambda: judge(components))
        host, spent = host_milliseconds(step)
        kernels = kernel_milliseconds(step, repeats=3)
    launches = sum(n for n, _ in kernels.values())
    triton = sum(n for name, (n, _) in kernels.items() if name.startswith("_") and not name.startswith("_Z"))
    busy = sum(n * each for n, each in kernels.values())
    facts = {"waits": waits, "waits_evaluating": waits_evaluating, "launches": launches, "triton_launches": triton,
             "host_ms": host, "step_ms": spent, "gpu_ms": busy}  # fmt: skip
    context.number(**{way: facts})
    context.line(f"{way:<16} waits {waits} a step, {waits_evaluating} an evaluation; launches a layer: "
                 f"{launches / layers:.1f}, Triton's {triton / layers:.1f}; host {host:.1f} ms, step {spent:.1f} ms, "
                 f"GPU {busy:.1f} ms")  # fmt: skip
    return f"{host:.1f} / {busy:.1f}"


def judge(components: Any) -> None:
    """An evaluation; its one wait is for its result."""
    from lora_train.trainer.loop.evaluate import evaluate

    evaluate(components)


def without_waits(context: Context, way: str, step: Any) -> None:
    """Two steps in torch's mode that raises where the host would wait."""
    if HAS_CUDA:
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
        context.check(True, f"{way}: nothing in a step waits")
    except RuntimeError as error:
        context.check(False, f"{way}: a step waits: {error}")
    finally:
        if HAS_CUDA:
            torch.cuda.set_sync_debug_mode("default")


def counted(work: Any) -> int:
    """Waits of the host while `work` runs, and the one that ends the measurement left out."""
    counts = Counts()
    work()
    n = int(counts.end()["synchronisations"])
    return n - 1 if HAS_CUDA else n


def host_milliseconds(step: Any) -> tuple[float, float]:
    """Until a step returns, beginning with nothing to do; and of steps one behind the other."""
    host = []
    for _ in range(STEPS):
        synchronize()
        started = time.perf_counter()
        step()
        host.append(1e3 * (time.perf_counter() - started))
    synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    synchronize()
    return median(host), 1e3 * (time.perf_counter() - started) / STEPS
