"""Compiles every Triton kernel for seven chips, without a GPU, and prints what the compiler made of it.

    python -m benchmarks.compile_kernels [--all] [--seen] [--json] [--instructions] [--kernel SUBSTRING] [--chip 80]

Per chip, kernel and rank bucket: registers per thread, stack bytes (0, or values are spilled to memory), shared memory
of a block, and how many tensor-core and 16-byte copy instructions its PTX has. Then what statistics cost the LoRA
kernels in instructions, read from the machine code (instructions.py); --instructions prints that alone. Kernels are
listed by `aot_variants()` of the files that hold them. Without --all, as the tests run it, a kernel that has rank
buckets is compiled for one of them per chip, another on the next: half the time. Not under TRITON_INTERPRET=1, which
replaces the compiler.

This file is not called kernels.py: scripts beside it would hide Hugging Face's library of that name.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from lora_train.kernels import cross_entropy
from lora_train.kernels.backend import AotVariant
from lora_train.kernels.elementwise import activation_triton, norm_triton, rotary_triton
from lora_train.kernels.frozen import nf4
from lora_train.kernels.lora_linear import launch as lora_linear_launch
from lora_train.kernels.statistics import exponents, multi_tensor, reduce, tensor_stats
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import instructions

FILES = (
    lora_linear_launch, cross_entropy, tensor_stats, multi_tensor, exponents, reduce, nf4,
    norm_triton, activation_triton, rotary_triton,
)  # fmt: skip

# Shared memory one block may have, KiB (CUDA C++ programming guide, "technical specifications per compute
# capability"; 1 KiB of each SM is the system's).
SHARED_LIMIT_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

# The rank bucket compiled for a chip without --all: each for two chips at least, one old and one new.
SAMPLED_RANK = {75: 16, 80: 16, 86: 32, 89: 64, 90: 16, 100: 64, 120: 32}
RANK_SUFFIX = re.compile(r" r\d+$")

TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
COPIES_16_BYTES = re.compile(
    r"\b(?:ld|st)\.global(?:\.[\w:]+)*\.(?:v4\.[bfu]32|v2\.[bfu]64|v8\.[bfu]32)"
    r"|\bcp\.async\.cg|\bcp\.async\.bulk\.tensor"
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one kernel became on one chip."""

    chip: int
    kernel: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    shared_limit_bytes: int
    tensor_core_instructions: int
    copies_16_bytes: int
    wants_tensor_cores: bool


def machine_code(variant: AotVariant, chip: int) -> Any:
    """Triton's compiled kernel of one variant for one chip."""
    names: list[str] = list(variant.fn.arg_names)
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned}
    source = ASTSource(fn=variant.fn, signature=signature, constexprs=variant.constexprs, attrs=attrs)
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": False,
        "maxnreg": variant.maxnreg,
    }
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)


def compile_variant(variant: AotVariant, chip: int) -> Compiled:
    """Compiles one variant for one chip and reads its resources from the binary."""
    compiled = machine_code(variant, chip)
    usage = resource_usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Compiled(
        chip=chip,
        kernel=variant.name,
        registers=usage["REG"],
        stack_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        shared_limit_bytes=SHARED_LIMIT_KIB[chip] * 1024,
        tensor_core_instructions=len(TENSOR_CORES.findall(ptx)),
        copies_16_bytes=len(COPIES_16_BYTES.findall(ptx)),
        wants_tensor_cores=variant.tensor_cores,
    )


def cost_of_statistics(variant: AotVariant, chip: int) -> instructions.Cost:
    """Compiles one variant with statistics and without, and compares their main loops."""
    loops, kernels = [], []
    for statistics in (True, False):
        switched = instructions.switched(variant, statistics)
        kernels.append(machine_code(switched, chip))
        loops.append(instructions.count(switched, kernels[-1].asm["cubin"], kernels[-1].asm["ptx"]))
    registers = resource_usage(kernels[0].asm["cubin"])["REG"]
    blocks = instructions.blocks_per_sm(chip, registers, kernels[0].metadata.shared, variant.num_warps)
    return instructions.Cost(
        chip=chip,
        kernel=variant.name,
        with_statistics=loops[0],
        without=loops[1],
        ratio=loops[0].per_value / loops[1].per_value,
        bar=instructions.bar(variant, chip),
        registers=registers,
        blocks_per_sm=blocks,
        warps_per_sm=blocks * variant.num_warps,
    )


def resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL, ... of the one kernel in a cubin, by the cuobjdump of Triton's own wheel."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def is_sampled(variant: AotVariant, chip: int, names: list[str]) -> bool:
    """Whether `variant` is compiled for `chip` without --all; `names` are those of all variants."""
    family = RANK_SUFFIX.sub("", variant.name)
    n_buckets = sum(RANK_SUFFIX.sub("", name) == family for name in names)
    return n_buckets == 1 or variant.constexprs["RANK"] == SAMPLED_RANK[chip]


Chips = tuple[int, ...]


def tasks_for(kernel: str, chips: Chips, every_rank: bool) -> list[tuple[int, int, int]]:
    """File, variant in it, and chip of all that is to be compiled: a kernel cannot be sent to another process."""
    names = sorted({variant.name for file in FILES for variant in file.aot_variants()})
    return [
        (file, index, chip)
        for file in range(len(FILES))
        for index, variant in enumerate(FILES[file].aot_variants())
        for chip in chips
        if kernel in variant.name and chip in variant.chips
        if every_rank or is_sampled(variant, chip, names)
    ]


def compile_all(kernel: str = "", chips: Chips = tuple(SHARED_LIMIT_KIB), every_rank: bool = True) -> list[Compiled]:
    """Every shipped variant whose name contains `kernel`, on every one of `chips` it is shipped for.

    One process per core: a compilation takes one to four seconds. Triton caches them.
    """
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        return pool.map(_compile_task, tasks_for(kernel, chips, every_rank), chunksize=4)


def compile_seen(chips: Chips) -> list[Compiled]:
    """What whole runs under the fake driver would have launched (fake_cuda), on every chip that launches the same."""
    from .fake_cuda.__main__ import RUNS, run_one

    global _seen
    _seen = []
    for fake, real in ((75, (75,)), (90, tuple(chip for chip in SHARED_LIMIT_KIB if chip >= 80))):
        found = [run_one(name, fake).seen for name in RUNS if name != "200 micro-batches"]
        variants = {v.key(): v for seen in found if seen is not None for v in seen.driver.variants}
        _seen += [(variant, chip) for variant in variants.values() for chip in real if chip in chips]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:  # a variant cannot be sent, only inherited
        return pool.map(_seen_task, range(len(_seen)), chunksize=1)


_seen: list[tuple[Any, int]] = []


def _seen_task(index: int) -> Compiled:
    variant, chip = _seen[index]
    code = variant.compile(chip)
    usage = resource_usage(code.asm["cubin"])
    ptx = code.asm["ptx"]
    name = f"seen {variant.name.strip('_').removesuffix('_kernel')} {index}"
    counts = len(TENSOR_CORES.findall(ptx)), len(COPIES_16_BYTES.findall(ptx))
    stack, limit = usage["STACK"] + usage["LOCAL"], SHARED_LIMIT_KIB[chip] * 1024
    return Compiled(chip, name, usage["REG"], stack, code.metadata.shared, limit, *counts, False)


def costs_of_statistics(kernel: str, chips: Chips, every_rank: bool) -> list[instructions.Cost]:
    """What statistics cost in every variant that can be compiled without."""
    tasks = tasks_for(kernel, chips, every_rank)
    counted = [task for task in tasks if instructions.is_counted(FILES[task[0]].aot_variants()[task[1]])]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        return pool.map(_cost_task, counted, chunksize=4)


def _compile_task(task: tuple[int, int, int]) -> Compiled:
    file, index, chip = task
    return compile_variant(FILES[file].aot_variants()[index], chip)


def _cost_task(task: tuple[int, int, int]) -> instructions.Cost:
    file, index, chip = task
    return cost_of_statistics(FILES[file].aot_variants()[index], chip)


def print_table(results: list[Compiled]) -> None:
    print(f"{'chip':<8}{'kernel':<28}{'registers':>10}{'stack':>7}{'shared':>9}{'tensor':>13}{'16-byte':>9}")
    for r in results:
        chip, shared = f"sm_{r.chip}", f"{r.shared_bytes / 1024:.1f}K"
        counts = f"{r.tensor_core_instructions:>13}{r.copies_16_bytes:>9}"
        print(f"{chip:<8}{r.kernel:<28}{r.registers:>10}{r.stack_bytes:>7}{shared:>9}{counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every rank bucket on every chip")
    parser.add_argument("--json", action="store_true", help="print a list of records instead of a table")
    parser.add_argument("--seen", action="store_true", help="also what whole runs under the fake driver would launch")
    parser.add_argument("--instructions", action="store_true", help="only what statistics cost in instructions")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--chip", type=int, action="append", choices=SHARED_LIMIT_KIB, help="only this chip")
    arguments = parser.parse_args()
    if knobs.runtime.interpret:
        sys.exit("error: TRITON_INTERPRET=1 replaces the compiler\nhint: unset it")
    wanted = arguments.kernel, tuple(arguments.chip or SHARED_LIMIT_KIB), arguments.all
    results = [] if arguments.instructions else compile_all(*wanted)
    results += compile_seen(wanted[1]) if arguments.seen else []
    costs = costs_of_statistics(*wanted) if arguments.instructions or not arguments.json else []
    if arguments.json:
        json.dump([dataclasses.asdict(result) for result in results or costs], sys.stdout)
        return
    if results:
        print_table(results)
    instructions.print_costs(costs)


if __name__ == "__main__":
    main()
