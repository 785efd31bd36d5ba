"""The formulas of the one-pass kernels against what they load and store in the interpreter."""

import pytest
import torch
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.cross_entropy import linear_cross_entropy
from lora_train.kernels.frozen import nf4
from lora_train.kernels.statistics.tensor_stats import tensor_stats_triton

from benchmarks import pass_traffic
from benchmarks.count_traffic import counted_traffic
from benchmarks.kernel_bytes import moved


@pytest.mark.parametrize("n", [1, 431, 20_001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_stats(n: int, dtype: torch.dtype):
    with triton_on_cpu(), counted_traffic() as counted:
        tensor_stats_triton(torch.ones(n, dtype=dtype), True)
    assert moved(counted) == moved(pass_traffic.stats(n, dtype))


@pytest.mark.parametrize("blocksize", [64, 4096])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_nf4_decode(dtype: torch.dtype, blocksize: int):
    n = 40_001
    blocks = -(-n // blocksize)
    packed = torch.randint(256, (-(-n // 2),), dtype=torch.uint8)
    # every entry of both tables is used, or the touched bytes would depend on the weight
    packed[:256] = torch.arange(256)
    absmax = torch.arange(blocks).to(torch.uint8)
    nested = (torch.ones(-(-blocks // 256)), torch.ones(256), torch.tensor(0.0))
    with counted_traffic() as counted:
        weight = nf4.NF4Weight(packed, absmax, torch.ones(16), blocksize, *nested)
        nf4.nf4_decode_triton(weight, (n,), dtype)
    want, got = moved(pass_traffic.nf4_decode(n, blocksize, dtype))[0], moved(counted)[0]
    if blocks < 256:  # scales that no block has
        want["nested_code_ptr"] = (got["nested_code_ptr"][0], *want["nested_code_ptr"][1:])
    assert got == want


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_cross_entropy(dtype: torch.dtype):
    hidden = torch.randn(5, 16).to(dtype).requires_grad_()
    weight, labels = torch.randn(5000, 16).to(dtype), torch.tensor([0, 4999, 7, 4096, 4095])
    with triton_on_cpu(), counted_traffic() as counted:
        linear_cross_entropy(hidden, weight, labels)
    assert moved(counted) == moved(pass_traffic.cross_entropy(5, 5000, dtype))
