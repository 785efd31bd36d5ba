"""Launches a kernel that has been launched with such arguments before without asking Triton for it again.

Triton binds and looks at every argument at each launch, in Python, to find which variant it wants. Kernels whose
arguments stand in this order need none of that:

    tensors     a variant knows their dtypes, which follow from those of the first two and the constants, and that their
                addresses are multiples of 16
    sizes       ints of the model: a variant may know that one is 1 or a multiple of 16
    free        ints and floats that Triton does not specialise: whatever depends on the number of tokens
    constants   the constexprs

A variant is kept by dtypes, sizes and constants, and launched as Triton's tutorial on persistent softmax does it.
"""

from __future__ import annotations

from typing import Any

import torch

from . import backend

_ALIGNED = 16
_INT32 = 1 << 31

_variants: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[torch.Tensor, ...],
    sizes: tuple[int, ...],
    free: tuple[int | float, ...],
    constants: tuple[Any, ...],
    **options: Any,
) -> None:
    """kernel[grid](*tensors, *sizes, *free, *constants, **options).

    Args:
        kernel: a `@jit(do_not_specialize=<names of the free ints>)` function with its arguments in that order.
        tensors: on one device.
        options: num_warps, num_stages and so on; always the same for the same constants.
    """
    first = tensors[0]
    key = (id(kernel), first.device, first.dtype, tensors[1].dtype, sizes, constants)
    variant = _variants.get(key)
    addresses, before = 0, None
    for tensor in tensors:
        if tensor is not before:  # places that are not needed hold their neighbour once more
            addresses |= tensor.data_ptr()
            before = tensor
    usual = addresses % _ALIGNED == 0 and (not free or max(free) < _INT32)
    if variant is not None and usual and not backend.is_elsewhere(first):  # a context costs more than it is worth
        variant[grid](*tensors, *sizes, *free, *constants)
        return
    with backend.on_device(first):
        if variant is not None and usual:
            variant[grid](*tensors, *sizes, *free, *constants)
            return
        _check(kernel, len(tensors) + len(sizes), free)
        variant = kernel[grid](*tensors, *sizes, *free, *constants, **options)
        if usual and variant is not None:  # the interpreter has none
            _variants[key] = variant


def _check(kernel: Any, first: int, free: tuple[int | float, ...]) -> None:
    """What is kept of one launch must hold for the next, whatever its free arguments are."""
    parameters = getattr(kernel, "params", ())  # the interpreter specialises nothing
    for parameter, value in zip(parameters[first:], free, strict=False):
        if isinstance(value, int) and not parameter.do_not_specialize:
            raise TypeError(f"{kernel.__name__}: {parameter.name} varies with the batch; name it in do_not_specialize")


backend.forget_at_another_gpu(_variants)
