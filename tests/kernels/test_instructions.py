"""What statistics may cost the LoRA kernels in instructions, read from what the compiler made; nothing is timed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.instructions import blocks_per_sm, main_loop

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[80, 90])
def costs(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Of fp16 at rank 16, in a process of its own: this one may interpret kernels (tests/conftest.py)."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compile_kernels", "--json", "--instructions"]
    command += ["--kernel", "fp16 r16", "--chip", str(request.param)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_statistics_keep_to_their_bar(costs: list[dict[str, Any]]):
    assert [cost["kernel"].split()[1] for cost in costs] == ["down", "up", "grad"]
    assert {cost["bar"] for cost in costs} == {1.5}
    assert [(cost["kernel"], cost["ratio"]) for cost in costs if cost["ratio"] > cost["bar"]] == []


def test_a_tile_costs_no_fp64_and_no_exchange_between_threads(costs: list[dict[str, Any]]):
    loops = [cost["with_statistics"] for cost in costs]
    assert [(loop["doubles"], loop["shuffles"]) for loop in loops] == [(0, 0)] * 3


def test_an_sm_holds_two_blocks_of_grad(costs: list[dict[str, Any]]):
    assert [cost["blocks_per_sm"] >= 2 for cost in costs if "grad" in cost["kernel"]] == [True]


SASS = """
.L_x_1:
        /*0010*/                   HMMA.1688.F32.TF32 R4, R8, R9, R4 ;
        /*0020*/                   NOP ;
.L_x_2:
        /*0030*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0040*/              @!P0 BRA `(.L_x_2) ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   DADD R2, R2, R6 ;
        /*0080*/                   FADD R2, R2, R6 ;
        /*0090*/                   FADD R2, R2, R6 ;
        /*00a0*/                   FADD R2, R2, R6 ;
        /*00b0*/                   FADD R2, R2, R6 ;
        /*00c0*/               @P0 BRA `(.L_x_3) ;
"""


def test_main_loop_is_the_one_with_the_products():
    """Longer ones without are not it, inner ones belong to it, branches ahead are no loops."""
    loop = main_loop(SASS, re.compile("HMMA"))
    assert [instruction.split()[0] for instruction in loop] == ["HMMA.1688.F32.TF32", "IADD3", "@!P0", "@P1", "@P0"]


@pytest.mark.parametrize(
    ("chip", "registers", "shared", "num_warps", "blocks"),
    [(90, 128, 0, 8, 2), (90, 129, 0, 8, 1), (90, 255, 0, 4, 2), (86, 40, 50 << 10, 4, 1), (75, 16, 0, 8, 4)],
)
def test_blocks_per_sm(chip: int, registers: int, shared: int, num_warps: int, blocks: int):
    assert blocks_per_sm(chip, registers, shared, num_warps) == blocks
