"""A checkpoint is whole, or what is wrong with it is found before anything is restored from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_train.trainer.saved.state import Progress, state_text
from lora_train.trainer.saved.sums import ADAPTER, OPTIMIZER, STATE, SUMS, write_sums
from lora_train.trainer.saved.whole import what_is_torn
from safetensors.torch import save_file

from .test_state import CONFIG

FILES = (ADAPTER, OPTIMIZER, STATE, "adapter_config.json", SUMS)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "checkpoint-6"
    folder.mkdir()
    save_file({"x": torch.arange(64.0)}, folder / ADAPTER)
    save_file({"y": torch.ones(64, dtype=torch.bfloat16), "n": torch.tensor(6)}, folder / OPTIMIZER)
    (folder / STATE).write_text(state_text(Progress(step=6), CONFIG.model_dump()))
    (folder / "adapter_config.json").write_text("{}")
    write_sums(folder)
    return folder


def test_whole_with_sums_and_without(folder):
    assert what_is_torn(folder) == ""
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)
    (folder / SUMS).unlink()  # as releases before wrote it
    assert what_is_torn(folder) == ""


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert what_is_torn(folder)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found(folder, name):
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 40):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        (folder / name).write_bytes(damaged)
        assert what_is_torn(folder) != "", f"bit {bit}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_gone_is_named(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    assert what_is_torn(folder).startswith(name) or name == SUMS
    (folder / name).unlink()
    assert what_is_torn(folder) == ("" if name == SUMS else f"{name} is missing")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [ADAPTER, OPTIMIZER])
def test_values_that_are_not_finite_are_found_with_right_sums_and_without(folder, name, value):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        save_file({"lora_A": torch.tensor([1.0, value], dtype=dtype)}, folder / name)
        (folder / SUMS).unlink(missing_ok=True)
        assert what_is_torn(folder) == f"{name}: lora_A holds values that are not finite"
        write_sums(folder)
        assert what_is_torn(folder) == f"{name}: lora_A holds values that are not finite"
