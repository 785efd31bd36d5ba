"""Which tests a process runs, and on what."""

from __future__ import annotations

import os

import pytest
import torch
from triton import knobs

from .conftest import COMMAND_ENVIRONMENT, ON_GPU, wants_gpu


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("", False), ("gpu", True), ("gpu and not slow", True), ("not gpu", False), ("slow or not gpu", False)],
)
def test_the_gpu_is_asked_for_by_its_mark(expression, expected):
    assert wants_gpu(expression) == expected


def test_without_the_mark_no_gpu_is_seen_and_kernels_are_interpreted():
    assert not ON_GPU
    assert not torch.cuda.is_available()
    assert COMMAND_ENVIRONMENT["CUDA_VISIBLE_DEVICES"] == ""
    assert knobs.runtime.interpret
    assert "TRITON_INTERPRET" not in COMMAND_ENVIRONMENT


def test_cublas_can_be_deterministic():
    """torch raises from every product on a GPU without it, once deterministic algorithms are on."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == COMMAND_ENVIRONMENT["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.gpu
def test_with_the_mark_kernels_are_compiled():
    assert ON_GPU
    assert not knobs.runtime.interpret
    assert "CUDA_VISIBLE_DEVICES" not in COMMAND_ENVIRONMENT or COMMAND_ENVIRONMENT["CUDA_VISIBLE_DEVICES"]
