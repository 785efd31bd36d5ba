"""Launching without asking Triton: only what depends on nothing that changed may be reused.

In a process of its own, with the fake driver: this one's kernels are interpreted (tests/conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LAUNCHES = """
from unittest.mock import patch

import pytest
import torch
from lora_train.kernels import backend
from lora_train.kernels.lora_linear import kernels
from lora_train.kernels.lora_linear.read import grad
from lora_train.kernels.backend import jit
from lora_train.kernels.launcher import launch
from benchmarks.fake_cuda import fake_cuda


def down(z, n_cols, n_rows, n_blocks=1, stats=False):
    out = torch.empty(z.shape)
    found = torch.empty(64, 8, dtype=torch.float64)
    constants = (False, stats, "tf32", 16, 32, 64)
    tensors = (z, out, out, z, found if stats else out)
    launch(kernels._down_kernel, (1, 1, 1), tensors, (n_cols, 4), (n_rows, n_blocks, 0.0), constants, num_warps=4)


z = torch.zeros(64, 64, dtype=torch.float16)
with fake_cuda(90) as driver:
    for rows in (1, 16, 17, 64):  # the number of tokens makes no variant
        down(z[:rows], 64, rows)
    assert (len(driver.variants), driver.launches["_down_kernel"]) == (1, 4)
    down(z[:, :33].contiguous(), 33, 64)  # a width that 16 does not divide does
    down(z.bfloat16(), 64, 64)  # and a dtype
    down(z, 64, 64, stats=True)  # and a constant
    assert len(driver.variants) == 4
    down(z.view(-1)[1:65].view(1, 64), 64, 1)  # an address that 16 does not divide is Triton's to see
    assert len(driver.variants) == 5
    down(z[:1], 64, 1)
    assert len(driver.variants) == 5
    assert driver.launches["_down_kernel"] == 9
    with patch.object(backend, "is_elsewhere", lambda x: True), patch.object(backend, "on_device") as on_device:
        down(z[:1], 64, 1)  # of tensors on another GPU that one is made the current first, known variant or not
    assert on_device.call_count == 1
    down(z[:1], 64, 1)
    assert driver.launches["_down_kernel"] == 11
with fake_cuda(75) as driver:  # another GPU has compiled nothing yet
    down(z, 64, 64)
    assert len(driver.variants) == 1
    with pytest.raises(TypeError, match="_grad_kernel: n_rows varies with the batch; name it in do_not_specialize"):
        grad._grad_kernel.params[24].do_not_specialize = False
        assert grad._grad_kernel.params[24].name == "n_rows"
        launch(grad._grad_kernel, (1, 1, 1), (z,) * 15, (64,) * 9, (1, 64, 0, 0, 1.0, 1.0, 1.0, 1.0, 0.0), ())
"""


def test_a_variant_is_launched_again_for_any_batch_and_for_nothing_else():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
