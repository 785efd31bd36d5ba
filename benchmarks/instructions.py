"""What statistics add to the LoRA kernels, in instructions: read from the machine code, without a GPU.

    python -m benchmarks.compile_kernels --kernel lora

Every `down`, `up` and `grad` of lora_linear/tiles.py is compiled with and without statistics, without dropout.

    per value = instructions of the main loop * threads / (BLOCK_M * BLOCK_C * unrolled)

The main loop is the longest that holds a tensor-core instruction, or a fused multiply-add in a kernel without
(sm_75): from the target of a backward branch to the branch, without NOPs. A loop in it counts once, as it runs for a
rank that fits one chunk. `unrolled` is how many times as many of those instructions it has as the PTX, where each
stands once. The loops that count again after NaN or infinity hold none and are not counted
(kernels/statistics/tile_sums.py says when they run).

Blocks per SM: what registers (given out by 8 a thread), threads and shared memory (1 KiB a block for the system)
allow.
"""

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from lora_train.kernels.backend import AotVariant

KERNELS = ("down", "up", "grad")
BARS = {"fp16": 1.5, "bf16": 2.2, "fp32": 2.2}
CHIPS_WITH_A_BAR = (80, 86, 89, 90)

# CUDA C++ programming guide, "technical specifications per compute capability"
REGISTERS_PER_SM = 65536
THREADS_PER_SM = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
SHARED_PER_SM_KIB = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}

LABEL = re.compile(r"^(\.L_x_\d+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;")
BRANCH = re.compile(r"\bBRA\b.*?`\((\.L_x_\d+)\)")
PRODUCT = re.compile(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b")
PRODUCT_PTX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
MULTIPLY_ADD = re.compile(r"\bFFMA\b")
MULTIPLY_ADD_PTX = re.compile(r"\bfma\.rn\.f32\b")
DOUBLE = re.compile(r"\bD(?:ADD|MUL|FMA|SETP|MNMX)\b|\.F64\b")


@dataclasses.dataclass(frozen=True)
class Loop:
    """The main loop of one kernel on one chip."""

    per_value: float
    """Instructions a value of the tile."""
    doubles: int
    """fp64 instructions in it."""
    shuffles: int
    """Exchanges between threads of a warp in it."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """One kernel on one chip, with statistics and without."""

    chip: int
    kernel: str
    with_statistics: Loop
    without: Loop
    ratio: float
    bar: float | None
    """What the ratio may be at most; None where nothing is promised."""
    registers: int
    """Per thread, as the two below with statistics."""
    blocks_per_sm: int
    warps_per_sm: int


def disassemble(cubin: bytes) -> str:
    """SASS of a cubin, by the nvdisasm of Triton's own wheel.

    Raises:
        FileNotFoundError: this Triton has none.
    """
    nvdisasm = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    if not nvdisasm.exists():
        raise FileNotFoundError(f"{nvdisasm}: this Triton brings no disassembler; instructions cannot be counted")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([nvdisasm, "-c", file.name], check=True, capture_output=True, text=True).stdout


def main_loop(sass: str, mark: re.Pattern[str]) -> list[str]:
    """Instructions of the longest loop that holds one like `mark`."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in sass.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            target = BRANCH.search(found[1])
            instructions.append(found[1])
            if target and target[1] in labels:  # a label not met yet is ahead
                loops.append(instructions[labels[target[1]] :])
    loops = [loop for loop in loops if any(map(mark.search, loop))]
    return [instruction for instruction in max(loops, key=len) if not re.search(r"\bNOP\b", instruction)]


def count(variant: AotVariant, cubin: bytes, ptx: str) -> Loop:
    """The main loop of a compiled variant."""
    mark, mark_ptx = (PRODUCT, PRODUCT_PTX) if PRODUCT_PTX.search(ptx) else (MULTIPLY_ADD, MULTIPLY_ADD_PTX)
    loop = main_loop(disassemble(cubin), mark)
    unrolled = len([*filter(mark.search, loop)]) / len(mark_ptx.findall(ptx))
    values = variant.constexprs["BLOCK_M"] * variant.constexprs["BLOCK_C"] * unrolled
    return Loop(
        per_value=len(loop) * 32 * variant.num_warps / values,
        doubles=len([*filter(DOUBLE.search, loop)]),
        shuffles=sum("SHFL" in instruction for instruction in loop),
    )


def blocks_per_sm(chip: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Blocks of a kernel that one SM holds at once."""
    by_registers = REGISTERS_PER_SM // (-(-registers // 8) * 8 * 32 * num_warps)
    by_shared = SHARED_PER_SM_KIB[chip] * 1024 // (shared_bytes + 1024)
    return min(by_registers, by_shared, THREADS_PER_SM[chip] // (32 * num_warps))


def is_counted(variant: AotVariant) -> bool:
    """Whether `variant` has a main loop that may be without statistics."""
    family, kernel, *_ = [*variant.name.split(), ""]
    return family == "lora" and kernel in KERNELS


def bar(variant: AotVariant, chip: int) -> float | None:
    """The ratio that `variant` may have on `chip`."""
    return BARS[variant.name.split()[2]] if chip in CHIPS_WITH_A_BAR else None


def switched(variant: AotVariant, statistics: bool) -> AotVariant:
    """`variant` without dropout, with statistics or without."""
    return dataclasses.replace(variant, constexprs={**variant.constexprs, "DROPOUT": False, "STATS": statistics})


def print_costs(costs: list[Cost]) -> None:
    print("\ninstructions per value in the main loop (without dropout), and what one SM holds of the kernel")
    print(f"{'chip':<8}{'kernel':<22}{'with stats':>11}{'without':>9}{'ratio':>7}{'bar':>6}{'fp64':>6}", end="")
    print(f"{'registers':>11}{'blocks':>8}{'warps':>7}")
    for c in costs:
        bar = "-" if c.bar is None else f"{c.bar:.1f}"
        loop = c.with_statistics
        counts = f"{loop.per_value:>11.1f}{c.without.per_value:>9.1f}{c.ratio:>7.2f}{bar:>6}{loop.doubles:>6}"
        print(f"{f'sm_{c.chip}':<8}{c.kernel:<22}{counts}{c.registers:>11}{c.blocks_per_sm:>8}{c.warps_per_sm:>7}")
    above = [f"{c.kernel} on sm_{c.chip}" for c in costs if c.bar is not None and c.ratio > c.bar]
    print(f"above the bar: {', '.join(above) or 'none'}")
