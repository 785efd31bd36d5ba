"""Which notes are dropped, and that nothing else is: in processes that import bitsandbytes as users do."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
from lora_train.instrument.quiet import NOTES

from ..conftest import COMMAND_ENVIRONMENT, Cli

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

# bitsandbytes writes the first where the chip has bf16 in AVX-512 and the second for 8-bit weights: here both, always.
SAY_ALL = f"""
import logging
import bitsandbytes
for name, start in {NOTES}.items():
    logging.getLogger(name).warning(start + " from somewhere: %s", "a reason")
    logging.getLogger(name).warning("something else")
logging.getLogger("bitsandbytes.cextension").warning("WARNING: BNB_CUDA_VERSION=124")
"""
REST = "something else\nsomething else\nWARNING: BNB_CUDA_VERSION=124\n"


@pytest.mark.parametrize("name", NOTES)
def test_bitsandbytes_still_says_it_there(name: str):
    assert f'"{NOTES[name]}' in inspect.getsource(importlib.import_module(name))


@pytest.mark.parametrize(
    "first",
    [
        "from lora_train import InstrumentCallback",
        "from lora_train.instrument import InstrumentCallback",
        "from lora_train.kernels.lora_linear import lora_linear",
        "import lora_train.trainer.config.schema",
    ],
)
def test_the_notes_are_dropped_and_the_rest_is_said(first: str):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", first + SAY_ALL],
        env=COMMAND_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == REST


def test_the_command_that_imports_bitsandbytes_says_nothing_of_it(cli: Cli, tmp_path):
    result = cli("env", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\nbitsandbytes   0" in result.stdout
    assert "gemm_4bit" not in result.stdout
