"""Statistics of many tensors in two launches, and what they do not take."""

import pytest
import torch
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.statistics.multi_tensor import multi_tensor_stats
from lora_train.kernels.statistics.tensor_stats_aten import tensor_stats_reference

from ..helpers import INF, NAN, assert_row, random


@pytest.mark.parametrize("aligned", [True, False])
def test_many_tensors(triton_device: str, aligned: bool):
    sizes = (8, 8192, 40_960, 4) if aligned else (1, 0, 431, 8192, 20_001, 123)
    tensors = [random(n, torch.float32, seed=i) * 10.0 ** (9 * i - 20) for i, n in enumerate(sizes)]
    tensors[2][-1], tensors[2][0] = NAN, INF
    if triton_device == "cpu":
        with triton_on_cpu():
            rows = multi_tensor_stats(tensors)
            again = multi_tensor_stats(tensors)
    else:
        rows, again = (multi_tensor_stats([x.cuda() for x in tensors]).cpu() for _ in range(2))
    for row, x in zip(rows, tensors, strict=True):
        assert_row(row, tensor_stats_reference(x, full=False))
    assert torch.equal(rows.nan_to_num(-1), again.nan_to_num(-1))
    for row, x in zip(multi_tensor_stats(tensors), tensors, strict=True):
        assert_row(row, tensor_stats_reference(x, full=False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_16_bit_tensors(triton_device: str, dtype: torch.dtype):
    """The gradients of a model that is trained in 16 bits as a whole, the same columns as those of float32."""
    tensors = [random(n, dtype, seed=i) * 10.0**power for i, (n, power) in enumerate(((8192, -3), (431, 2), (1, 0)))]
    tensors[1][7], tensors[1][9] = NAN, INF
    if triton_device == "cpu":
        with triton_on_cpu():
            rows = multi_tensor_stats(tensors)
    else:
        rows = multi_tensor_stats([x.cuda() for x in tensors]).cpu()
    expected = torch.stack([tensor_stats_reference(x, full=True) for x in tensors])
    expected[:, 4:8] = NAN
    for found in (rows, multi_tensor_stats(tensors)):
        for row, wanted in zip(found, expected, strict=True):
            assert_row(row, wanted)


def test_many_tensors_says_what_it_cannot_take():
    assert multi_tensor_stats([]).shape == (0, 9)
    with pytest.raises(ValueError, match=r"tensor 1 is torch\.float16"):
        multi_tensor_stats([torch.zeros(3), torch.zeros(3, dtype=torch.float16)])
    with pytest.raises(ValueError, match="tensor 0"):
        multi_tensor_stats([torch.zeros(3, 4).mT])
    with pytest.raises(ValueError, match=r"tensor 0 is torch\.float64 .* want contiguous fp32, fp16 or bf16"):
        multi_tensor_stats([torch.zeros(3, dtype=torch.float64)])
