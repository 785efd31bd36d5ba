"""NF4 decode in one launch: packed 4-bit weight to fp16, bf16 or fp32, bit-equal to bitsandbytes.

A weight of n values, row-major, is cut into blocks of `blocksize`. Byte i holds value 2i in its high nibble
and 2i + 1 in its low one; a nibble indexes the 16 values of `code`.

    w[j] = code[nibble[j]] * scale[j // blocksize]                        in fp32, rounded once
    scale[b] = absmax[b]                                                  plain
    scale[b] = nested_code[absmax[b]] * nested_absmax[b // nested_blocksize] + offset   double quantization

Bit-equality needs the product and the sum of `scale` rounded apart, as bitsandbytes does in two launches
before a third: hence `enable_fp_fusion=False`, or the compiler makes one fused multiply-add of them.

Shapes: packed uint8 [ceil(n / 2)], or a view of those bytes in another dtype; absmax [ceil(n / blocksize)],
uint8 if nested, else fp32; code fp32 [16]; nested_absmax fp32 [ceil(blocks / nested_blocksize)]; nested_code
fp32 [256]; offset fp32 []; result `shape`. QLoRA, arXiv 2305.14314; bytes as in bitsandbytes/functional.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton.language as tl

from ..backend import AotVariant, cdiv, jit, on_device, uses_triton
from ..ledger import FLOAT, Ledger, size

# 16 bytes per thread at 8 warps: one 16-byte load, 64 bytes of fp16 to store. Two of the largest blocks.
TILE_BYTES = 4096
NUM_WARPS = 8
CPU_BLOCKSIZE = 1024


@dataclass(frozen=True)
class NF4Weight:
    """A frozen weight as bitsandbytes packs it.

    Attributes:
        packed: two values per byte; contiguous, any dtype (bitsandbytes' `quant_storage`).
        absmax: scale of each block, uint8 if nested, else fp32.
        code: fp32 [16], the values a nibble stands for.
        blocksize: values per scale, a power of two from 32 to 4096.
        nested_absmax, nested_code, offset: given together if `absmax` is itself quantized.
        nested_blocksize: scales per nested scale.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    code: torch.Tensor
    blocksize: int
    nested_absmax: torch.Tensor | None = None
    nested_code: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    nested_blocksize: int = 256

    def tensors(self) -> list[torch.Tensor]:
        """The three or six tensors."""
        nested = (self.nested_absmax, self.nested_code, self.offset)
        return [self.packed, self.absmax, self.code, *(t for t in nested if t is not None)]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], blocksize: int, nested_blocksize: int) -> "NF4Weight":
        """Of what `tensors` gave."""
        packed, absmax, code = tensors[:3]
        nested, nested_code, offset = tensors[3:] or (None, None, None)
        return cls(packed, absmax, code, blocksize, nested, nested_code, offset, nested_blocksize)


@jit
def _nf4_decode_kernel(
    packed_ptr,
    absmax_ptr,
    code_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    out_ptr,
    n,
    n_bytes,
    NESTED: tl.constexpr,
    NESTED_BLOCKSIZE: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Each program decodes ROWS blocks, one per row of its tile; a scale is decoded once per block."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = rows * BLOCKSIZE < n
    if NESTED:
        quantized = tl.load(absmax_ptr + rows, mask=row_mask, other=0).to(tl.int32)
        nested = tl.load(nested_absmax_ptr + rows // NESTED_BLOCKSIZE, mask=row_mask, other=0.0)
        scale = tl.load(nested_code_ptr + quantized) * nested + tl.load(offset_ptr)
    else:
        scale = tl.load(absmax_ptr + rows, mask=row_mask, other=0.0)

    byte = rows[:, None] * (BLOCKSIZE // 2) + tl.arange(0, BLOCKSIZE // 2)[None, :]
    packed = tl.load(packed_ptr + byte, mask=byte < n_bytes, other=0).to(tl.int32)
    high = tl.load(code_ptr + (packed >> 4)) * scale[:, None]
    low = tl.load(code_ptr + (packed & 15)) * scale[:, None]
    values = tl.interleave(high, low).to(out_ptr.dtype.element_ty)
    offsets = rows[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    tl.store(out_ptr + offsets, values, mask=offsets < n)


def nf4_decode_triton(weight: NF4Weight, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """`nf4_decode` in one launch."""
    out = torch.empty(shape, dtype=dtype, device=weight.packed.device)
    if out.numel():
        with on_device(out):
            _nf4_decode_kernel[(cdiv(out.numel(), 2 * TILE_BYTES),)](
                weight.packed.view(torch.uint8),
                weight.absmax,
                weight.code,
                weight.nested_absmax,
                weight.nested_code,
                weight.offset,
                out,
                out.numel(),
                cdiv(out.numel(), 2),
                NESTED=weight.nested_absmax is not None,
                NESTED_BLOCKSIZE=weight.nested_blocksize,
                BLOCKSIZE=weight.blocksize,
                ROWS=2 * TILE_BYTES // weight.blocksize,
                num_warps=NUM_WARPS,
                enable_fp_fusion=False,
            )
    return out


def nf4_decode_cpu(weight: NF4Weight, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """`nf4_decode` by bitsandbytes' own vectorised CPU code, which has the NF4 values built in.

    Asked for the weight's own shape, its AVX-512 code takes wrong scales when a row is no multiple of the
    block (0.50.2: `absmax_dim_1 = dim_1 / blocksize`), and it leaves blocks over 1024 and odd rows to a
    compiled ATen fallback. So it is asked for one row per block, blocks of at most 1024 and an even count.
    """
    import bitsandbytes  # noqa: F401  registers the operators; nobody without NF4 weights needs it

    ops, absmax, blocksize = torch.ops.bitsandbytes, weight.absmax, weight.blocksize
    if weight.nested_absmax is not None and weight.offset is not None:
        nested = weight.nested_absmax, weight.nested_code, weight.nested_blocksize
        absmax = ops.dequantize_blockwise(absmax, *nested, torch.float32)
        absmax = absmax + weight.offset
    if blocksize > CPU_BLOCKSIZE:
        absmax = absmax.repeat_interleave(blocksize // CPU_BLOCKSIZE)
        blocksize = CPU_BLOCKSIZE
    n = math.prod(shape)
    rows = [n // blocksize, blocksize] if n % blocksize == 0 else [n + n % 2]
    values = ops.dequantize_4bit(weight.packed.reshape(-1), absmax, blocksize, "nf4", rows, dtype)
    return values.reshape(-1)[:n].clone().view(shape) if n % 2 else values.view(shape)


def nf4_decode_reference(weight: NF4Weight, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """`nf4_decode` in plain PyTorch."""
    absmax, device = weight.absmax, weight.packed.device
    if weight.nested_absmax is not None and weight.nested_code is not None and weight.offset is not None:
        nested_block = torch.arange(absmax.numel(), device=device) // weight.nested_blocksize
        absmax = weight.nested_code[absmax.long()] * weight.nested_absmax[nested_block] + weight.offset
    byte = weight.packed.reshape(-1).view(torch.uint8).int()
    out = torch.empty(shape, dtype=dtype, device=device)
    nibble = torch.stack((byte >> 4, byte & 15), dim=-1).reshape(-1)[: out.numel()]
    scale = absmax[torch.arange(out.numel(), device=device) // weight.blocksize]
    return out.copy_((weight.code[nibble] * scale).reshape(shape))


def decode(weight: NF4Weight, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Decodes an NF4 weight, bit-equal to `bitsandbytes.functional.dequantize_4bit`.

    Args:
        shape: of the weight.
        dtype: fp16, bf16 or fp32.

    Returns:
        The weight, a new tensor.
    """
    return (nf4_decode_triton if uses_triton(weight.packed) else nf4_decode_cpu)(weight, shape, dtype)


def decode_scratch(ledger: Ledger, weight: NF4Weight, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """What `decode` takes, in order; bytes of its result, which are taken. On the CPU those of bitsandbytes 0.50."""
    n = math.prod(shape)
    if uses_triton(weight.packed):
        return ledger.take(n * size(dtype))
    scales = 0
    if weight.nested_absmax is not None:
        quantized = ledger.take(FLOAT * weight.absmax.numel())
        scales = ledger.take(quantized)
        ledger.give(quantized)
    if weight.blocksize > CPU_BLOCKSIZE:
        repeated = ledger.take(FLOAT * weight.absmax.numel() * (weight.blocksize // CPU_BLOCKSIZE))
        ledger.give(scales)
        scales = repeated
    blocksize = min(weight.blocksize, CPU_BLOCKSIZE)
    values = ledger.take(size(dtype) * (n if n % blocksize == 0 else n + n % 2))
    if n % 2:
        copy = ledger.take(size(dtype) * n)
        ledger.give(values)
        values = copy
    ledger.give(scales)
    return values


@torch.library.custom_op("lora_train::nf4_decode", mutates_args=())
def nf4_decode(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    nested_absmax: torch.Tensor | None,
    nested_code: torch.Tensor | None,
    offset: torch.Tensor | None,
    shape: Sequence[int],
    blocksize: int,
    nested_blocksize: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`decode` as an operator that torch knows."""
    nested = nested_absmax, nested_code, offset, nested_blocksize
    return decode(NF4Weight(packed, absmax, code, blocksize, *nested), shape, dtype)


@nf4_decode.register_fake
def _(packed, absmax, code, nested_absmax, nested_code, offset, shape, blocksize, nested_blocksize, dtype):
    return packed.new_empty(shape, dtype=dtype)


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time."""
    signature = {
        "packed_ptr": "*u8",
        "absmax_ptr": "*u8",
        "code_ptr": "*fp32",
        "nested_absmax_ptr": "*fp32",
        "nested_code_ptr": "*fp32",
        "offset_ptr": "*fp32",
        "out_ptr": "*fp16",
        "n": "i32",
        "n_bytes": "i32",
    }
    variants = []
    for dtype in ("fp16", "bf16", "fp32"):
        for blocksize in (64, 4096):
            variants.append(
                AotVariant(
                    f"nf4 decode {dtype} {blocksize}",
                    _nf4_decode_kernel,
                    signature | {"out_ptr": f"*{dtype}"},
                    {
                        "NESTED": True,
                        "NESTED_BLOCKSIZE": 256,
                        "BLOCKSIZE": blocksize,
                        "ROWS": 2 * TILE_BYTES // blocksize,
                    },
                    tuple(signature),
                    num_warps=NUM_WARPS,
                )
            )
    return variants
