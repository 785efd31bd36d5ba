"""Triton kernels are tested everywhere: compiled where there is a CUDA device, interpreted elsewhere.

TRITON_INTERPRET is read when a kernel is defined, so it is set here, before any test file imports one, for
the whole pytest process. That changes nothing else: CPU tensors take the CPU path, interpreter or not, unless
a test calls a Triton launcher itself or enters `lora_train.kernels.backend.triton_on_cpu()`. Tests that need
the real compiler start a process without the variable (tests/kernels/test_aot.py).
"""

import os

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not HAS_CUDA:
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
