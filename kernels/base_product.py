"""Products of a LoRA linear with its frozen weight on a GPU, which are torch's, that is cuBLAS. The CPU's are in
frozen_product.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import is_gpu


def base_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [M, C] weight^T + bias in the dtype of x; fp32 accumulation, one rounding. `bias` may be empty."""
    if not is_gpu(x.device):  # the interpreter: the CPU's 16-bit GEMM is another algorithm
        product = x.float() @ weight.float().t()
        return (product + bias.float() if bias.numel() else product).to(x.dtype)
    weight = weight.to(x.dtype)
    return torch.addmm(bias.to(x.dtype), x, weight.t()) if bias.numel() else torch.mm(x, weight.t())


def base_grad(dy: Tensor, weight: Tensor, dx: Tensor | None) -> Tensor:
    """dy weight, added to `dx` in place if there is one, with one rounding."""
    if not is_gpu(dy.device):
        product = dy.float() @ weight.float()
        return product.to(dy.dtype) if dx is None else dx.copy_(dx.float() + product)
    weight = weight.to(dy.dtype)
    return torch.mm(dy, weight) if dx is None else dx.addmm_(dy, weight)
