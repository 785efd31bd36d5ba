"""The formulas of the fused LoRA linear against what its kernels load and store in the interpreter."""

import pytest
import torch

from benchmarks.fused_traffic import Linear, backward, forward, lower_bound
from benchmarks.kernel_bytes import CHECKED, count_fused, moved, triton_launches

# More rank chunks than one, more columns than one strip, splits of rows and of columns, and none.
CASES = (
    *CHECKED,
    Linear(1, 48, 72, 1, torch.float16, True, True, True, 8),
    Linear(200, 48, 300, 64, torch.float16, True, True, True, 132),
    Linear(63, 200, 72, 256, torch.float16, True, True, True, 132),
    Linear(123, 130, 72, 33, torch.float32, True, True, True, 40),
)


@pytest.mark.parametrize("layer", CASES, ids=lambda layer: f"{layer.n_tokens}-{layer.n_in}-{layer.n_out}-r{layer.rank}")
def test_every_operand_of_every_launch(layer: Linear):
    counted = count_fused(layer)
    assert counted
    assert moved(counted) == moved(triton_launches(layer))


def test_lower_bound_by_hand():
    layer = Linear(2, 3, 5, 1, torch.float16)
    x, y, w, bias, lora, h = 12, 20, 30, 10, 32, 8
    assert lower_bound(layer) == (x + w + bias + lora + y + h) + (y + w + x + lora + h + x + lora)


def test_products_of_cublas_are_counted_once_per_operand():
    layer = Linear(2, 3, 5, 1, torch.float16)
    gemms = [launch for launch in forward(layer) + backward(layer) if launch.name.startswith("GEMM")]
    assert [
        (sum(a.loaded for a in g.accesses.values()), sum(a.stored for a in g.accesses.values())) for g in gemms
    ] == [
        (12 + 30 + 10, 20),
        (20 + 30, 12),
    ]
