"""The parts, most valuable first. Their seconds add up to less than eight minutes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One part: `run(context)` of a module of this package, in a process of its own.

    Attributes:
        what: one clause for --help.
        seconds: it may always take; what the parts before it left over comes on top.
        correctness: whether it proves that results are right. Those parts lend time to each other only, so that
            together they stay within CORRECTNESS_SECONDS.
        interprets: whether Triton's interpreter stands in for the GPU in a dry run.
        environment: of its process.
        module: where `run` is; the name, if not given.
    """

    name: str
    what: str
    seconds: float
    correctness: bool = False
    interprets: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    module: str = ""


CORRECTNESS_SECONDS = 240.0
TOTAL_SECONDS = 470.0
DRY_SECONDS, DRY_TOTAL_SECONDS = 600.0, 1800.0
"""Of each part, and of all together, in a dry run: it proves that code runs, not how fast on a machine that is busy."""

# without it cuBLAS may take another algorithm from run to run
SAME_PRODUCTS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

PARTS = (
    Part("setup", "installs the wheels that are missing, and lora-train, into a folder of its own", 45),
    Part("compile", "compiles what the launchers launch, on all cores, into the cache that all parts share", 35),
    Part("ceilings", "what the card can do: copy bandwidth, an 8192^3 product", 15),
    Part("smokes", "every launcher against float64, outputs poisoned, one row, sm_75's products", 30, True, True,
         SAME_PRODUCTS),
    Part("sanitizer", "the smokes under compute-sanitizer's memcheck and racecheck", 40, True, True, SAME_PRODUCTS),
    Part("pytest", "the tests that need a GPU", 75, True, False, SAME_PRODUCTS, "gpu_tests"),
    Part("runs", "training through the command line: fp16, bf16, NF4, evaluation, SIGKILL, --resume auto", 60, True),
    Part("collapse", "a planted collapse: stopped, healed, replayed, and the stock Trainer's loss 0", 35, True),
    Part("waits", "waits and launches of a step, host milliseconds beside GPU milliseconds", 25),
    Part("overhead", "a step beside the stock Trainer's, 1B models", 75),
    Part("kernels", "kernel times beside the bytes they must move", 15),
    Part("memory", "peak memory beside the dry run's prediction", 20),
)  # fmt: skip
