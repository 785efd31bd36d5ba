"""Statistics of many tensors in two launches, such as all gradients of a step. Meanings: tensor_stats.py.

Shapes: T contiguous tensors of one dtype (fp32, fp16, bf16) and of any shape -> rows float64 [T, 9].
"""

import functools
from collections.abc import Sequence

import torch
import triton.language as tl

from ..backend import AotVariant, is_gpu, jit, on_device, uses_triton
from .reduce import FIELDS, N_FIELDS, N_PARTIALS, reduce_ragged_partials
from .tensor_stats_aten import tensor_stats_cpu
from .tile_stats import BLOCK, FAST_DTYPES, MAX_PROGRAMS, NUM_WARPS, split, write_partials
from .tile_sums import flat_partials

# Those of fp16 and bf16 come for nothing on a CPU; what is recorded must not depend on the device.
_COUNTED_BESIDES = slice(FIELDS.index("n_overflow"), FIELDS.index("n_zero") + 1)


@jit
def _multi_stats_kernel(
    address_ptr,
    tensor_ptr,
    first_ptr,
    n_ptr,
    partials_ptr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_PROGRAMS: tl.constexpr,
):
    """`_stats_kernel` of tensor_stats.py over many: program p works on tensor[p], first[t] is t's first program."""
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(tensor_ptr + program)
    n = tl.load(n_ptr + tensor)
    x_ptr = tl.load(address_ptr + tensor).to(tl.pointer_type(DTYPE))  # pyright: ignore[reportArgumentType]
    if ALIGNED:  # what the compiler knows of an argument by itself; a loaded value it must be told about
        x_ptr = tl.multiple_of(x_ptr, 16)
        n = tl.multiple_of(n, GROUP)
    tiles_per_program = tl.cdiv(tl.cdiv(n, BLOCK), MAX_PROGRAMS)
    start = (program - tl.load(first_ptr + tensor)) * tiles_per_program
    write_partials(partials_ptr, program, flat_partials(x_ptr, start, tiles_per_program, n, False, BLOCK))


@functools.lru_cache(maxsize=16)
def _shares(sizes: tuple[int, ...], device: torch.device) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """How programs share tensors of these sizes: their number P, tensor [P], first [T + 1] and n [T].

    The sizes of a model's parameters never change, so this is built once a run.
    """
    programs = torch.tensor([split(n)[0] for n in sizes])
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), programs)
    first = torch.nn.functional.pad(programs.cumsum(0), (1, 0))
    tables = [_upload(table, device) for table in (tensor, first, torch.tensor(sizes))]
    return tensor.numel(), tables[0], tables[1], tables[2]


def _upload(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies to the device without waiting, from pinned memory that torch keeps until the copy is over."""
    return table.pin_memory().to(device, non_blocking=True) if is_gpu(device) else table


def multi_tensor_stats(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Statistics of many contiguous tensors of one dtype, such as all gradients, in two launches and no waiting.

    Overflow, underflow, subnormals and zeros are null. Column 0, `sumsq`, gives the norms of the tensors and,
    summed, the norm that clipping needs.

    Returns:
        float64 [T, 9] on the device of the tensors, which must be one.

    Raises:
        ValueError: a tensor is not fp32, fp16 or bf16, not of the first one's dtype, or not contiguous.
    """
    for i, x in enumerate(tensors):
        if x.dtype not in FAST_DTYPES or x.dtype != tensors[0].dtype or not x.is_contiguous():
            wanted = f"contiguous {tensors[0].dtype if tensors[0].dtype in FAST_DTYPES else 'fp32, fp16 or bf16'}"
            raise ValueError(f"tensor {i} is {x.dtype} with strides {x.stride()}; want {wanted}")
    if not tensors:
        return torch.empty((0, N_FIELDS), dtype=torch.float64)
    if not uses_triton(tensors[0]):
        rows = torch.stack([tensor_stats_cpu(x.detach(), False) for x in tensors])
        rows[:, _COUNTED_BESIDES] = torch.nan
        return rows
    return multi_tensor_stats_triton(tensors)


def multi_tensor_stats_triton(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """`multi_tensor_stats` on the device; stream order keeps the tensors alive until the kernel has run."""
    device, group = tensors[0].device, 16 // tensors[0].element_size()  # values of a 16-byte load
    n_programs, tensor, first, n = _shares(tuple(x.numel() for x in tensors), device)
    addresses = torch.tensor([x.data_ptr() for x in tensors])
    partials = torch.empty((n_programs, N_PARTIALS), dtype=torch.float64, device=device)
    with on_device(partials):
        _multi_stats_kernel[(n_programs,)](
            _upload(addresses, device),
            tensor,
            first,
            n,
            partials,
            DTYPE=getattr(tl, str(tensors[0].dtype).removeprefix("torch.")),
            ALIGNED=all(x.data_ptr() % 16 == 0 and x.numel() % group == 0 for x in tensors),
            GROUP=group,
            BLOCK=BLOCK,
            MAX_PROGRAMS=MAX_PROGRAMS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return reduce_ragged_partials(partials, first, n)


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time."""
    pointers = {
        "address_ptr": "*i64",
        "tensor_ptr": "*i64",
        "first_ptr": "*i64",
        "n_ptr": "*i64",
        "partials_ptr": "*fp64",
    }
    return [
        AotVariant(
            name,
            _multi_stats_kernel,
            pointers,
            {
                "DTYPE": dtype,
                "ALIGNED": True,
                "GROUP": 128 // dtype.primitive_bitwidth,
                "BLOCK": BLOCK,
                "MAX_PROGRAMS": MAX_PROGRAMS,
            },
            tuple(pointers),
            num_warps=NUM_WARPS,
        )
        for name, dtype in (
            ("multi-tensor stats", tl.float32),
            ("multi-tensor stats fp16", tl.float16),
            ("multi-tensor stats bf16", tl.bfloat16),
        )
    ]
