"""Which implementation serves a tensor: Triton on CUDA, the CPU path elsewhere. Decided here only.

Triton's interpreter runs the same kernels on CPU tensors, thousands of times slower. Tests call the Triton
launchers directly, or send everything through them with `triton_on_cpu()`. Under `standing_in()` CPU tensors count as
those of a GPU, and whoever asks learns what chip that is: benchmarks/fake_cuda launches nothing and sees everything.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import _get_current_dispatch_mode
from triton import knobs

# Untyped: for a type checker a kernel would take neither num_warps nor a plain value for a constexpr.
jit: Any = triton.jit

INTERPRETER_PROGRAMS = 8
"""The interpreter's number of multiprocessors: enough that every split is tested."""

_cpu_tensors_use_triton = False
_NOTHING = nullcontext()


@dataclass(frozen=True)
class StandIn:
    """The GPU that CPU tensors stand for."""

    n_multiprocessors: int
    capability: tuple[int, int]


_stand_in: StandIn | None = None


def uses_triton(x: torch.Tensor) -> bool:
    """True if the Triton kernels serve `x`, False if the CPU path does."""
    return x.is_cuda or _cpu_tensors_use_triton


def cdiv(n: int, block: int) -> int:
    """Blocks that `n` values fill. Triton's own can be called from a kernel too, and costs the host 10 us."""
    return -(-n // block)


def uses_triton_on(device: torch.device) -> bool:
    """`uses_triton` of any tensor there."""
    return device.type == "cuda" or _cpu_tensors_use_triton


def is_gpu(device: torch.device) -> bool:
    """Whether it works behind the host's back: copies to it want pinned memory, and reading from it is a wait."""
    return device.type == "cuda" or _stand_in is not None


def segment_sums(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Sums of values [n] that follow each other, so many of each segment; float64 [segments]."""
    lengths = torch.tensor(counts)
    if is_gpu(values.device):
        lengths = lengths.pin_memory().to(values.device, non_blocking=True)
    # unsafe: without a look at the lengths, for which the host would wait
    return torch.segment_reduce(values.double(), "sum", lengths=lengths, unsafe=True)


@lru_cache(maxsize=16)
def _chip(device: torch.device) -> StandIn:
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return StandIn(count, torch.cuda.get_device_capability(device))


def n_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter has a few."""
    if device.type == "cuda":
        return _chip(device).n_multiprocessors
    return INTERPRETER_PROGRAMS if _stand_in is None else _stand_in.n_multiprocessors


def has_tensor_cores(device: torch.device) -> bool:
    """Whether Triton's `tl.dot` runs on tensor cores: from sm_80. The interpreter counts as such a chip."""
    found = _tensor_cores.get(device)
    if found is None:
        chip = _chip(device) if device.type == "cuda" else _stand_in
        found = _tensor_cores[device] = chip is None or chip.capability >= (8, 0)
    return found


_tensor_cores: dict[torch.device, bool] = {}


def _mend_interpreter() -> None:
    """Lets the interpreter of Triton 3.4 to 3.6 run with NumPy 2.4 and later.

    A loop's bound is an array [1] there; NumPy turns only arrays [] into an integer now. Triton 3.7 does the same.
    """
    from triton.runtime import interpreter

    patch_tensor: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patched


if knobs.runtime.interpret:
    _mend_interpreter()


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


@contextmanager
def standing_in(gpu: StandIn) -> Iterator[None]:
    """While it lasts, CPU tensors count as those of this GPU."""
    global _cpu_tensors_use_triton, _stand_in
    before = _cpu_tensors_use_triton, _stand_in
    _cpu_tensors_use_triton, _stand_in = True, gpu
    _forget()
    try:
        yield
    finally:
        _cpu_tensors_use_triton, _stand_in = before
        _forget()


_of_this_gpu: list[dict] = []


def forget_at_another_gpu(kept: dict) -> None:
    """`kept` holds what is true of the GPU at hand: it is emptied where another begins to stand in."""
    _of_this_gpu.append(kept)


forget_at_another_gpu(_tensor_cores)


def _forget() -> None:
    for kept in _of_this_gpu:
        kept.clear()


def on_device(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Makes the device of `x` the current one, on which Triton launches; with one GPU it is, and nothing is done.

    Every launch stands in one: a model spread over several GPUs has tensors elsewhere, whose addresses would be read
    on the wrong device.
    """
    return torch.cuda.device(x.device) if is_elsewhere(x) else _NOTHING


def is_elsewhere(x: torch.Tensor) -> bool:
    """Whether `x` lies on a GPU that is not the current one."""
    return x.is_cuda and x.device.index != torch.cuda.current_device()


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
    maxnreg: int | None = None
    """The most registers of a thread; None: ptxas weighs them against blocks on an SM."""
    chips: tuple[int, ...] = field(default=(75, 80, 86, 89, 90, 100, 120))
    """Compute capabilities it is shipped for."""
    tensor_cores: bool = False
    """True if its `tl.dot` must become tensor-core instructions on every one of `chips`."""


def runs_directly(x: torch.Tensor) -> bool:
    """Whether an operator's function may be called without the dispatcher: where nobody has to see the operator.

    The dispatcher's layers of Python can cost a call more than a small product takes.
    """
    if torch.compiler.is_compiling():
        return False
    mode = _get_current_dispatch_mode()
    return mode is None or getattr(mode, "sees_through_operators", False)
