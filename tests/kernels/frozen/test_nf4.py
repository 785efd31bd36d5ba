"""NF4 decode against bitsandbytes, bit for bit, on the same bytes."""

import math
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from lora_train.kernels.frozen import nf4

from ..helpers import random_shapes

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Last block full, partial, or the only one; odd counts; more than one program and more than one nested block.
SHAPES = ((64, 64), (63, 123), (431,), (1, 1), (3, 4099), (40, 576), *random_shapes(3, 60, 300))


def quantized(shape: tuple[int, ...], blocksize: int, nested: bool) -> tuple[torch.Tensor, Any]:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    packed, state = bnb.quantize_4bit(weight, blocksize=blocksize, compress_statistics=nested, quant_type="nf4")
    return packed, state


def arguments(packed: torch.Tensor, state: Any, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    second = (state.state2.absmax, state.state2.code, state.offset) if state.nested else (None, None, None)
    nested_blocksize = state.state2.blocksize if state.nested else 256
    return packed, state.absmax, state.code, *second, shape, state.blocksize, nested_blocksize, dtype


def oracle(packed: torch.Tensor, state: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """bitsandbytes' decode, asked for a flat weight of even size: nf4_decode_cpu tells why."""
    n = math.prod(shape)
    state.dtype, state.shape = dtype, (n + n % 2,)
    with torch.compiler.set_stance("force_eager"):  # it compiles its fallback for blocks over 1024: 20 s
        return bnb.dequantize_4bit(packed, state).flatten()[:n].view(shape)


def weight_of(values: tuple[Any, ...], device: str = "cpu") -> tuple[Any, ...]:
    """The weight, its shape and the dtype, as the implementations take them, of the operator's arguments."""
    moved: list[Any] = [value.to(device) if isinstance(value, torch.Tensor) else value for value in values]
    packed, absmax, code, nested, nested_code, offset, shape, blocksize, nested_blocksize, dtype = moved
    return nf4.NF4Weight(packed, absmax, code, blocksize, nested, nested_code, offset, nested_blocksize), shape, dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("blocksize", [64, 128, 256, 512, 1024, 2048, 4096])
def test_cpu_and_reference(blocksize: int, nested: bool, dtype: torch.dtype):
    for shape in SHAPES:
        packed, state = quantized(shape, blocksize, nested)
        values = arguments(packed, state, shape, dtype)
        expected = oracle(packed, state, shape, dtype)
        assert torch.equal(nf4.nf4_decode(*values), expected)
        assert torch.equal(nf4.nf4_decode_reference(*weight_of(values)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("blocksize", [64, 128, 1024, 4096])
def test_triton(blocksize: int, nested: bool, dtype: torch.dtype, triton_device: str):
    for shape in SHAPES:
        packed, state = quantized(shape, blocksize, nested)
        values = arguments(packed, state, shape, dtype)
        expected = oracle(packed, state, shape, dtype)
        if triton_device == "cpu" and dtype == torch.bfloat16:  # the interpreter truncates
            full = oracle(packed, state, shape, torch.float32)
            expected = (full.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
        assert torch.equal(nf4.nf4_decode_triton(*weight_of(values, triton_device)).cpu(), expected)


def test_own_shape_where_bitsandbytes_is_right():
    packed, state = quantized((32, 256), 64, True)
    expected = bnb.dequantize_4bit(packed, state)
    assert torch.equal(nf4.nf4_decode(*arguments(packed, state, (32, 256), torch.float32)), expected)


def test_empty_weight(triton_device: str):
    packed, state = quantized((1, 2), 64, True)
    values = weight_of(arguments(packed[:0], state, (0, 64), torch.float16), triton_device)
    assert nf4.nf4_decode_triton(*values).shape == (0, 64)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_bytes_stored_as_another_dtype(storage: torch.dtype, triton_device: str):
    packed, state = quantized((64, 64), 64, True)
    values = arguments(packed, state, (64, 64), torch.float16)
    stored = (packed.view(-1).view(storage).view(-1, 1), *values[1:])
    expected = nf4.nf4_decode_reference(*weight_of(values))
    assert torch.equal(nf4.nf4_decode(*stored), expected)
    assert torch.equal(nf4.nf4_decode_reference(*weight_of(stored)), expected)
    assert torch.equal(nf4.nf4_decode_triton(*weight_of(stored, triton_device)).cpu(), expected)


def test_operator_passes_opcheck():
    for nested in (True, False):
        packed, state = quantized((63, 123), 64, nested)
        torch.library.opcheck(nf4.nf4_decode, arguments(packed, state, (63, 123), torch.float32))
