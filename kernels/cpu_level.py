"""Which of the CPU's compiled loops run: LORA_TRAIN_CPU=portable|avx2|avx512|amx, else the best this chip has.

    portable  any chip      avx2  AVX2, F16C, FMA      avx512  AVX-512 F, DQ, BW, VL      amx  and tiles of bf16

Read when `cpu/` is imported, for all its C files at once. Imports no torch: the command line names the mistake.
"""

import os

VARIABLE = "LORA_TRAIN_CPU"
LEVELS = ("portable", "avx2", "avx512", "amx")  # each has those before it; their order is that of cpu/common.h


class LevelError(ValueError):
    """LORA_TRAIN_CPU asks for what there is not.

    Attributes:
        asked: what it holds.
        has: the levels that can be asked for here.
    """

    def __init__(self, asked: str, has: tuple[str, ...]):
        super().__init__(f"{VARIABLE}={asked}: the CPU loops that run on this machine are {', '.join(has)}")
        self.asked, self.has = asked, has


def chosen_level(best: str) -> str:
    """The level that LORA_TRAIN_CPU asks for, `best` where it is unset or empty.

    Raises:
        LevelError: it holds another word, or more than `best`.
    """
    asked = os.environ.get(VARIABLE) or best
    has = LEVELS[: LEVELS.index(best) + 1]
    if asked not in has:
        raise LevelError(asked, has)
    return asked
