"""What the card can do at best: bytes a second of a copy, operations a second of a large product."""

from __future__ import annotations

import torch

from ..context import Context
from ..device import DEVICE, milliseconds


def run(context: Context) -> str:
    """Measures both."""
    n_bytes, size = (1 << 20, 128) if context.dry else (4 << 30, 8192)
    source = torch.ones(n_bytes // 4, device=DEVICE)
    target = torch.empty_like(source)
    # a copy reads and writes every byte
    copy = 2 * n_bytes / milliseconds(lambda: target.copy_(source)) / 1e6
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.float16) for _ in range(2))
    product = 2 * size**3 / milliseconds(lambda: left @ right) / 1e9
    context.number(copy_gb_per_s=copy, product_tflops=product)
    context.check(bool((target == 1).all()), "a copy holds what was copied")
    return f"copy {copy:,.0f} GB/s, {size}^3 fp16 product {product:,.1f} TFLOP/s"
