"""Which implementation serves a tensor: Triton on CUDA, the CPU path elsewhere. Decided here and nowhere else.

Triton's interpreter runs the same kernels on CPU tensors, thousands of times slower. Tests call the Triton
launchers directly, or send everything through them with `triton_on_cpu()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton

_cpu_tensors_use_triton = False


def uses_triton(x: torch.Tensor) -> bool:
    """True if the Triton kernels serve `x`, False if the CPU path does."""
    return x.is_cuda or _cpu_tensors_use_triton


@contextmanager
def triton_on_cpu() -> Iterator[None]:
    """Sends CPU tensors through the Triton kernels in its interpreter, to test a whole model that way.

    Raises:
        RuntimeError: TRITON_INTERPRET=1 was not in the environment when the kernels were imported.
    """
    global _cpu_tensors_use_triton
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before the kernels are imported")
    _cpu_tensors_use_triton = True
    try:
        yield
    finally:
        _cpu_tensors_use_triton = False
