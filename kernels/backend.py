"""Which implementation serves a tensor: Triton on CUDA, the CPU path elsewhere. Decided here only.

Triton's interpreter runs the same kernels on CPU tensors, thousands of times slower. Tests call the Triton
launchers directly, or send everything through them with `triton_on_cpu()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import _get_current_dispatch_mode
from triton import knobs

# Untyped: for a type checker a kernel would take neither num_warps nor a plain value for a constexpr.
jit: Any = triton.jit

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
    if not knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before the kernels are imported")
    _cpu_tensors_use_triton = True
    try:
        yield
    finally:
        _cpu_tensors_use_triton = False


@dataclass(frozen=True)
class AotVariant:
    """One specialisation of a kernel, as shipped.

    benchmarks/compile_kernels.py compiles it for every chip, without a GPU. Kernel files list theirs in
    `aot_variants()`.
    """

    name: str
    fn: Any
    """The `@triton.jit` function."""
    signature: dict[str, str]
    """Type of every argument that is not a constexpr, in order: `*fp16`, `i32`, ..."""
    constexprs: dict[str, Any]
    aligned: tuple[str, ...]
    """Arguments divisible by 16, as torch's allocations and most sizes are; else no 16-byte copies."""
    num_warps: int = 4
    num_stages: int = 3
    chips: tuple[int, ...] = field(default=(75, 80, 86, 89, 90, 100, 120))
    """Compute capabilities it is shipped for."""
    tensor_cores: bool = False
    """True if it has a `tl.dot`, which must become tensor-core instructions on every chip from sm_80."""


def runs_directly(x: torch.Tensor) -> bool:
    """Whether an operator's function may be called without the dispatcher: on a CPU, where nobody has to see it.

    The dispatcher's layers of Python can cost a call more than a small product takes.
    """
    return x.device.type == "cpu" and not (
        uses_triton(x) or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    )
