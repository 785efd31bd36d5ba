"""The fused LoRA linear and its slot in plain PyTorch. Definitions: __init__.py."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..statistics.reduce import FIELDS
from ..statistics.tensor_stats_aten import tensor_stats_reference
from .group import Group


def lora_linear_reference(x: Tensor, group: Group, keep: Tensor | None = None) -> list[Tensor]:
    """`lora_linear` in plain PyTorch, differentiable, in the dtype of its inputs; meant for fp64.

    `keep` is the bool mask [..., K] that dropout drew. `slot_reference` has the statistics.
    """
    x_hat = x if keep is None else torch.where(keep, x, 0) / (1 - group.dropout.p)
    ys = []
    each = zip(group.dense(x.dtype), group.biases, group.lora_A, group.lora_B, group.scalings, strict=True)
    for weight, bias, a, b, s in each:
        ys.append(torch.nn.functional.linear(x, weight, bias) + s * (x_hat @ a.t()) @ b.t())
    return ys


class Watched(NamedTuple):
    """The tensors of a forward and backward whose statistics are in a slot."""

    x: Tensor
    ys: Sequence[Tensor]
    grads: Sequence[Tensor]
    dx: Tensor
    dA: Sequence[Tensor]
    dB: Sequence[Tensor]


def slot_reference(watched: Watched, accs: Sequence[Tensor] | None = None, dx_acc: Tensor | None = None) -> Tensor:
    """The slot that these tensors must leave behind, one pass per statistic.

    `accs` and `dx_acc` are what was rounded into 16-bit `ys` and `dx`, where somebody could see it (the CPU).
    """
    x, ys, grads, dx, dA, dB = watched
    x_finite = bool(x.isfinite().all())
    finite = [bool(grad.isfinite().all()) for grad in grads]
    in_row = tensor_stats_reference(x, full=False)
    in_row[[i for i, field in enumerate(FIELDS) if field not in ("n_nan", "n_inf", "n")]] = float("nan")
    outs = [_row_reference(y, x_finite, None if accs is None else accs[i]) for i, y in enumerate(ys)]
    grad_outs = [tensor_stats_reference(grad, full=False) for grad in grads]
    lora = [_row_reference(grad, x_finite and ok, None) for grad, ok in zip([*dA, *dB], finite * 2, strict=True)]
    return torch.stack([in_row, *outs, *grad_outs, _row_reference(dx, all(finite), dx_acc), *lora])


def _row_reference(stored: Tensor, finite_inputs: bool, acc: Tensor | None) -> Tensor:
    row = tensor_stats_reference(stored, full=False)
    overflow, underflow = FIELDS.index("n_overflow"), FIELDS.index("n_underflow")
    if stored.dtype == torch.float32:
        row[overflow] = row[underflow] = 0
    elif acc is not None:
        row[overflow] = (acc.isfinite() & stored.isinf()).sum()
        row[underflow] = ((acc != 0) & (stored == 0)).sum()
    if finite_inputs:
        row[overflow] = stored.isinf().sum()
    return row
