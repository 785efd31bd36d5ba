"""The counter itself, on a kernel whose bytes are known."""

import torch
import triton.language as tl
from lora_train.kernels.backend import jit

from benchmarks.count_traffic import counted_traffic
from benchmarks.traffic import Access


@jit
def _twice_kernel(x_ptr, y_ptr, scale_ptr, n, BLOCK: tl.constexpr):
    """Reads x and one scale twice, writes y once; nothing past n."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask) + tl.load(x_ptr + offsets, mask=mask)
    tl.store(y_ptr + offsets, x * tl.load(scale_ptr), mask=mask)


def test_masked_elements_do_not_count_and_repeated_ones_do():
    x, y, scale = torch.ones(37, dtype=torch.float16), torch.zeros(40, dtype=torch.float32)[:37], torch.ones(1)
    with counted_traffic() as launches:
        _twice_kernel[(3,)](x, y, scale, 37, BLOCK=16)
    assert [launch.name for launch in launches] == ["_twice_kernel"]
    assert launches[0].accesses == {
        "x_ptr": Access("x_ptr", 74, loaded=148),
        "y_ptr": Access("y_ptr", 148, stored=148),
        "scale_ptr": Access("scale_ptr", 4, loaded=12),
    }
    assert (y == 2).all()


def test_nothing_is_counted_afterwards():
    with counted_traffic() as launches:
        pass
    _twice_kernel[(1,)](torch.ones(4), torch.zeros(4), torch.ones(1), 4, BLOCK=16)
    assert launches == []
