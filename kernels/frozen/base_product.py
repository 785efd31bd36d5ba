"""Products of a LoRA linear with its frozen weight on a GPU, which are torch's, that is cuBLAS. The CPU's are in
frozen/product.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import is_gpu


def base_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [M, C] weight^T + bias in the dtype of x; fp32 accumulation, one rounding."""
    if not is_gpu(x.device):  # the interpreter: the CPU's 16-bit GEMM is another algorithm
        product = x.float() @ weight.float().t()
        return (product if bias is None else product + bias.float()).to(x.dtype)
    weight = weight if weight.dtype == x.dtype else weight.to(x.dtype)
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def base_grad(dy: Tensor, weight: Tensor, dx: Tensor | None) -> Tensor:
    """dy weight, added to `dx` in place if there is one, with one rounding."""
    if not is_gpu(dy.device):
        product = dy.float() @ weight.float()
        return product.to(dy.dtype) if dx is None else dx.copy_(dx.float() + product)
    weight = weight if weight.dtype == dy.dtype else weight.to(dy.dtype)
    return torch.mm(dy, weight) if dx is None else dx.addmm_(dy, weight)
