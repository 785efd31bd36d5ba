"""Host time of one LoRA linear, forward and backward, beside PEFT's own: what a GPU waits for where its work is short.

    python -m benchmarks.host_time [--rounds 7]

Under the fake driver (benchmarks/fake_cuda): Triton's dispatch, allocations, autograd and operators run as on a GPU,
kernels and everything they compute do not. Base products run on the CPU for both, on tensors so small that they are
calls and nothing else. Seconds are CPU time of this process, contenders in turns; ratios are what is to be read.

    PEFT          peft.tuners.lora.Linear, under autocast as its users run it
    plain         lora_linear without statistics
    statistics    lora_linear with, rows pending as in a run; its share of the launch that writes them is printed apart
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import triton
from lora_train.kernels.lora_linear import launch as lora_linear_launch
from lora_train.kernels.lora_linear import lora_linear
from lora_train.kernels.statistics.pending_rows import PendingRows
from peft import LoraConfig
from peft.tuners.lora import Linear

from .fake_cuda import fake_cuda

M, K, N, RANK = 8, 32, 32, 4
BAR, GOAL = 1.6, 1.3


@dataclass(frozen=True)
class Contender:
    name: str
    run: Callable[[], None]


def _peft(dropout: float) -> Callable[[], None]:
    base = torch.nn.Linear(K, N, bias=False, dtype=torch.float16).requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=dropout)
    layer = Linear(base, "default", config=config, r=RANK, lora_alpha=RANK, lora_dropout=dropout)
    layer.lora_A.float()
    layer.lora_B.float()
    x, dy = _activations()

    def run() -> None:
        with torch.autocast("cpu", torch.float16):
            y = layer(x)
        y.backward(dy)
        _clear(layer.parameters(), x)

    return run


def _ours(dropout: float, group: int, with_stats: bool) -> tuple[Callable[[], None], PendingRows]:
    weights = [torch.randn(N, K, dtype=torch.float16) for _ in range(group)]
    lora_A = [torch.randn(RANK, K, requires_grad=True) for _ in range(group)]
    lora_B = [torch.randn(N, RANK, requires_grad=True) for _ in range(group)]
    slot = torch.zeros(2 + 4 * group, 9, dtype=torch.float64) if with_stats else None
    seed, pending = torch.zeros(1, dtype=torch.int64), PendingRows()
    x, dy = _activations()

    def run() -> None:
        with torch.autocast("cpu", torch.float16):
            ys = lora_linear(
                x, weights, lora_A, lora_B, [1.0] * group, dropout_p=dropout, seed=seed, slot=slot, pending=pending
            )
        torch.autograd.backward(ys, [dy] * group)
        _clear([*lora_A, *lora_B], x)

    return run, pending


def _activations() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(M, K, dtype=torch.float16, requires_grad=True), torch.randn(M, N, dtype=torch.float16)


def _clear(parameters: Any, x: torch.Tensor) -> None:
    x.grad = None
    for parameter in parameters:
        parameter.grad = None


def microseconds(run: Callable[[], None], calls: int) -> float:
    """CPU time of a call."""
    started = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - started) / calls * 1e6


def in_turns(contenders: list[Contender], rounds: int, calls: int = 200) -> dict[str, list[float]]:
    """Microseconds of a call, a round after the other."""
    for contender in contenders:
        microseconds(contender.run, 30)
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            found[contender.name].append(microseconds(contender.run, calls))
    return found


def split(run: Callable[[], None], calls: int = 200) -> dict[str, float]:
    """Where a call's time goes, in microseconds: clocks around launches and allocations; they cost some of it."""
    spent = {"launches": 0.0, "allocations": 0.0}
    counts = {"launches": 0, "allocations": 0}

    def clocked(kind: str, function: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[kind] += time.process_time() - started
                counts[kind] += 1

        return timed

    with (
        patch.object(lora_linear_launch, "launch", clocked("launches", lora_linear_launch.launch)),
        patch.object(torch, "empty_like", clocked("allocations", torch.empty_like)),
        patch.object(torch.Tensor, "new_empty", clocked("allocations", torch.Tensor.new_empty)),
    ):
        microseconds(run, 20)
        spent.update(dict.fromkeys(spent, 0.0))
        counts.update(dict.fromkeys(counts, 0))
        started = time.process_time()
        for _ in range(calls):
            run()
        total = time.process_time() - started
    parts = {f"{kind} ({counts[kind] // calls})": seconds / calls * 1e6 for kind, seconds in spent.items()}
    return {**parts, "autograd and the rest": (total - sum(spent.values())) / calls * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # of its time a GPU would see nothing
    with fake_cuda(90) as driver:
        for dropout in (0.0, 0.05):
            plain, _ = _ours(dropout, 1, False)
            run, pending = _ours(dropout, 1, True)

            def with_rows(run=run, pending=pending) -> None:
                run()
                pending.clear()

            contenders = [
                Contender("PEFT", _peft(dropout)),
                Contender("plain", plain),
                Contender("statistics", with_rows),
            ]
            found = in_turns(contenders, arguments.rounds)
            before = driver.launches.total()
            with_rows()
            launches = driver.launches.total() - before
            print(f"one LoRA linear, lora_dropout {dropout}, {launches} Triton launches with statistics")
            ratios = {
                name: statistics.median(o / p for o, p in zip(times, found["PEFT"], strict=True))
                for name, times in found.items()
            }
            for name, times in found.items():
                print(f"  {name:<12}{statistics.median(times):>8.0f} us{ratios[name]:>7.2f}x")
            for kind, time_ in split(with_rows).items():
                print(f"      {kind:<26}{time_:>7.0f} us")
            verdict = "PASS" if ratios["statistics"] <= BAR else "SHORT"
            print(f"  bar: at most {BAR}x of PEFT (goal {GOAL}x): {verdict}")
    print(f"torch {torch.__version__}, triton {triton.__version__}; fake driver, no GPU")


if __name__ == "__main__":
    main()
