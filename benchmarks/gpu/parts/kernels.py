"""Kernel times beside the bytes that they must move, at the widths of LLaMA-8B and Polyglot-Ko 12.8B, 2048 tokens.

The bytes are those of fused_traffic.py and pass_traffic.py, which tests hold to what the kernels load and store; the
ceiling is the copy that `ceilings` measured. The share of the ceiling is what a kernel reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lora_train.kernels.lora_linear import lora_linear
from lora_train.kernels.statistics.reduce import FIELDS
from lora_train.kernels.statistics.tensor_stats import tensor_stats

from ...fused_traffic import Linear, backward, forward
from ...pass_traffic import stats
from ...traffic import Launch, traffic_of_each
from ..context import Context
from ..device import DEVICE, HAS_CUDA, kernel_milliseconds

N_TOKENS, DRY_TOKENS = 2048, 32
# kernels of lora_linear/kernels.py -> the launches of fused_traffic.py that they are
LAUNCHES = {"_down_kernel": ("down",), "_up_kernel": ("up Y", "up dX"), "_grad_kernel": ("grad", "dA")}
LAYERS = {
    "o_proj 8B": (4096, 4096),
    "up_proj 8B": (4096, 14336),
    "down_proj 8B": (14336, 4096),
    "query_key_value 12.8B": (5120, 15360),
}


def run(context: Context) -> str:
    """Times every kernel of each layer, with statistics and dropout."""
    tokens, shrink = (DRY_TOKENS, 128) if context.dry else (N_TOKENS, 1)
    worst: dict[str, float] = {}
    for name, (k, n) in LAYERS.items():
        layer = linear(tokens, k // shrink, n // shrink)
        launches = [*forward(layer), *backward(layer)]
        tell(context, name, kernel_milliseconds(pass_through(layer)), launches, worst)
    x = torch.randn(tokens, 14336 // shrink, device=DEVICE, dtype=torch.float16)
    times = kernel_milliseconds(lambda: tensor_stats(x, full=False))
    tell(context, "statistics alone", times, stats(x.numel(), x.dtype), worst, {"_stats_kernel": ("stats",)})
    context.number(shares=worst)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in worst.items())
    return f"lowest share of the copy's bandwidth: {shares}" if worst else "no ceiling was measured"


def linear(tokens: int, k: int, n: int) -> Linear:
    """A layer as the formulas take it, on the chip at hand."""
    from lora_train.kernels.backend import n_multiprocessors

    count = n_multiprocessors(torch.device(DEVICE)) if HAS_CUDA else 132
    return Linear(tokens, k, n, 16, bias=False, n_multiprocessors=count)


def pass_through(layer: Linear) -> Callable[[], Any]:
    """A forward and a backward of the layer."""
    x = torch.randn(layer.n_tokens, layer.n_in, device=DEVICE).to(layer.dtype).requires_grad_()
    weight = (torch.randn(layer.n_out, layer.n_in, device=DEVICE) / 64).to(layer.dtype)
    lora_A = torch.randn(layer.rank, layer.n_in, device=DEVICE, requires_grad=True)
    lora_B = torch.randn(layer.n_out, layer.rank, device=DEVICE, requires_grad=True)
    grad = torch.randn(layer.n_tokens, layer.n_out, device=DEVICE).to(layer.dtype)
    seed = torch.tensor([3], device=DEVICE)
    slot = torch.zeros(6, len(FIELDS), dtype=torch.float64, device=DEVICE)

    def work() -> None:
        (y,) = lora_linear(x, [weight], [lora_A], [lora_B], [2.0], dropout_p=0.05, seed=seed, slot=slot)
        torch.autograd.grad(y, [x, lora_A, lora_B], grad)

    return work


def tell(
    context: Context,
    name: str,
    times: dict[str, tuple[int, float]],
    launches: Iterable[Launch],
    worst: dict[str, float],
    kinds: dict[str, tuple[str, ...]] = LAUNCHES,
) -> None:
    """A line for a layer: time, bytes and share of each of its large kernels, all launches of one kind together."""
    ceiling = context.numbers_of("ceilings").get("copy_gb_per_s")
    listed = list(launches)
    hbm = dict(zip((one.name for one in listed), (t.hbm for t in traffic_of_each(listed)), strict=True))
    words = []
    for kernel, names in kinds.items():
        found = [(n, each) for key, (n, each) in times.items() if key.startswith(kernel)]
        context.check(bool(found), f"{name}: {kernel} was launched; there were {', '.join(times)}")
        if not found:
            continue
        spent = sum(n * each for n, each in found)
        n_bytes = sum(hbm[one] for one in names)
        speed = n_bytes / spent / 1e6
        context.number(**{f"{name} {kernel}": {"ms": spent, "bytes": n_bytes, "gb_per_s": speed}})
        share = f" {speed / ceiling:.0%}" if ceiling else ""
        if ceiling:
            worst[kernel] = min(worst.get(kernel, 1e9), speed / ceiling)
        words.append(f"{kernel.strip('_')} {1e3 * spent:.0f} us, {n_bytes / 2**20:.0f} MiB, {speed:,.0f} GB/s{share}")
    context.line(f"{name:<22} {'; '.join(words)}")
