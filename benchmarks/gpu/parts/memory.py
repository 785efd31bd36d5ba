"""Peak memory of real runs beside the dry run's prediction, by benchmarks/memory, each case in a process of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ...memory import CASES, compared, write_model
from ..context import Context

DRY_CASES = ("llama-fp16-checkpointing",)
BAR = 0.15
"""Largest error of a prediction on a GPU, where every byte is a tensor's; on a CPU the heap around them is a guess."""


def run(context: Context) -> str:
    """Compares all cases side by side."""
    cases = DRY_CASES if context.dry else tuple(CASES)
    for arch in sorted({CASES[case][0] for case in cases}):
        write_model(context.folder / arch, arch)
    with ThreadPoolExecutor(1 if context.dry else len(cases)) as pool:
        rows = list(pool.map(lambda case: compared(case, context.folder), cases))
    for row in rows:
        context.number(**{row.case: {"measured": row.measured, "predicted": row.predicted}})
        context.line(f"{row.case:<26} measured {row.measured >> 20:,} MiB, predicted {row.predicted >> 20:,} MiB, "
                     f"{row.error:+.1%}")  # fmt: skip
        context.check(context.dry or abs(row.error) <= BAR, f"{row.case}: the prediction is {row.error:+.1%} off")
    return f"{len(rows)} cases, largest error {max((row.error for row in rows), key=abs):+.1%}"
