"""The comparison with llama.cpp itself, where its bindings are installed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from ..conftest import COMMAND_ENVIRONMENT, ROOT

COMMAND = [sys.executable, "-m", "benchmarks.llama_cpp"]


def run() -> subprocess.CompletedProcess:
    return subprocess.run(COMMAND, cwd=ROOT, env=COMMAND_ENVIRONMENT, capture_output=True, text=True, check=False)


def test_without_the_bindings_it_says_how_to_get_them():
    if importlib.util.find_spec("llama_cpp") is not None:
        pytest.skip("llama-cpp-python is installed: there is nothing to say")
    result = run()
    assert result.returncode == 2
    assert result.stderr.endswith("error: llama-cpp-python is not installed\nhint: pip install llama-cpp-python\n")


def test_llama_cpp_computes_what_peft_does():
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    result = run()
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"(merged|adapter) +(\d\.\de-\d\d) +\S+ +100%", result.stdout)
    assert len(rows) == 16
    # GELU is looked up in a table of float16: 2^-11 of values up to about 4
    assert max(float(difference) for _, difference in rows) < 4 * 2**-11 * 4
