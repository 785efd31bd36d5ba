"""What a GPU's name or size says: how much memory a run may count on, and which 16-bit dtype it computes in."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Name -> memory in GiB as the driver reports it, and whether it has bfloat16.
GPUS = {
    "t4": (14.7, False),
    "p100": (15.9, False),
    "v100": (15.8, False),
    "v100-32": (31.7, False),
    "2080ti": (10.8, False),
    "3060": (11.8, True),
    "3080": (9.8, True),
    "3090": (23.7, True),
    "4060ti": (15.7, True),
    "4070": (11.7, True),
    "4080": (15.7, True),
    "4090": (23.6, True),
    "5090": (31.4, True),
    "l4": (22.2, True),
    "a10": (22.2, True),
    "l40s": (44.5, True),
    "a100": (39.4, True),
    "a100-80": (79.2, True),
    "h100": (79.2, True),
    "h200": (139.8, True),
}
CPU = ("cpu", "0", "none", "no")


@dataclass(frozen=True)
class Machine:
    """What is trained on.

    Attributes:
        name: as it was given.
        gib: memory of the GPU; None: there is none.
        bf16: whether it computes in bfloat16; None: not known.
    """

    name: str
    gib: float | None
    bf16: bool | None


def machine_of(text: str) -> Machine | None:
    """The machine that a person means by `3090`, `RTX 4090`, `24`, `24GB` or `cpu`; None: nobody knows."""
    plain = (
        re.sub(r"[\s_-]+", "-", re.sub(r"nvidia|geforce|tesla|rtx", "", text.lower()).strip())
        .rstrip("-")
        .replace("-ti", "ti")
    )
    if plain in CPU:
        return Machine(text, None, False)
    named = re.sub(r"-?80gi?b?$", "-80", plain) if plain.startswith("a100") else plain
    named = re.sub(r"-?32gi?b?$", "-32", named) if named.startswith("v100") else re.sub(r"-\d+-?gi?b$", "", named)
    if named in GPUS:
        return Machine(text, *GPUS[named])
    size = re.fullmatch(r"(\d+(?:\.\d+)?)-?(gi?b?)?", plain)
    if size is None or not 1 <= float(size[1]) <= 1024:
        return None
    return Machine(text, float(size[1]), None)
