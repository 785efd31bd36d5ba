"""Every shipped kernel compiles for every chip: no spills, shared memory within limits, wide copies."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """Compiled in a process of its own: this one may interpret kernels (tests/conftest.py)."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compile_kernels", "--json"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def name(result: dict[str, Any]) -> str:
    return f"{result['kernel']} on sm_{result['chip']}"


def test_every_kernel_is_compiled_for_seven_chips(compiled: list[dict[str, Any]]):
    assert {result["chip"] for result in compiled} == {75, 80, 86, 89, 90, 100, 120}
    kernels = {result["kernel"] for result in compiled}
    assert {"stats fp16", "multi-tensor stats", "reduce rows", "nf4 decode fp16 64"} <= kernels


def test_every_lora_kernel_is_compiled_for_every_chip(compiled: list[dict[str, Any]]):
    """One rank bucket per chip here, each of them somewhere; `make kernels` has all."""
    found = {(r["chip"], *r["kernel"].split()[1:]) for r in compiled if re.search(r" r\d+$", r["kernel"])}
    families = ("down", "up", "up_Y", "grad", "dA")
    kernels = [(kernel, dtype) for kernel in families for dtype in ("fp16", "bf16", "fp32")]
    chips = (75, 80, 86, 89, 90, 100, 120)
    few = {("grad", "fp32"): {"r16", "r32"}}  # rank 64 goes in two passes
    few |= {(kernel, "bf16"): {"r16"} for kernel in families}
    with_64 = (89, 100)
    for kernel in kernels:
        wanted = few.get(kernel, {"r16", "r32", "r64"})
        assert {entry[3] for entry in found if entry[1:3] == kernel} == wanted
        seen = {entry[0] for entry in found if entry[1:3] == kernel}
        without = (*with_64, 75) if kernel[1] == "bf16" else with_64 if "r64" not in wanted else ()  # sm_75 has no bf16
        assert seen >= set(chips) - set(without)


def test_nothing_is_spilled(compiled: list[dict[str, Any]]):
    assert {name(r): r["stack_bytes"] for r in compiled if r["stack_bytes"]} == {}


def test_shared_memory_fits(compiled: list[dict[str, Any]]):
    assert [name(r) for r in compiled if r["shared_bytes"] > r["shared_limit_bytes"]] == []


def test_memory_is_copied_16_bytes_at_a_time(compiled: list[dict[str, Any]]):
    assert [name(r) for r in compiled if not r["copies_16_bytes"]] == []


def test_matrix_products_use_tensor_cores(compiled: list[dict[str, Any]]):
    assert [name(r) for r in compiled if r["wants_tensor_cores"] and not r["tensor_core_instructions"]] == []
