"""Bytes that a sequence of launches moves, and which of them reach HBM.

A launch loads and stores tensors; `Access` says how many bytes of which, as the instructions ask for them. Caches
stand between that and memory. One rule for every contender, on the generous side for all of them:

- A store reaches HBM once, partial sums included: they are written back when something displaces them.
- A load comes from L2 if the same tensor was touched earlier in the launch or in one of the two before it and is at
  most 8 MiB. Larger tensors stream through and come from HBM every time.

8 MiB is a fifth of an A100's L2 and a sixth of an H100's; an RTX 3090 has 6 MiB and a T4 4 MiB. `Traffic.requested`,
with no cache at all, is the number that no chip can exceed. Everything here is arithmetic: nothing was timed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

L2_KEEPS_BYTES = 8 << 20
L2_KEEPS_LAUNCHES = 2

THROUGH_A_TABLE = "through a table"
"""Stands for the arguments of a kernel that finds its tensors by addresses in a table."""


@dataclass
class Access:
    """What one launch does to one tensor, in bytes."""

    tensor: str
    size: int
    """Bytes of the tensor that are touched, each counted once."""
    loaded: int = 0
    stored: int = 0


@dataclass
class Launch:
    """One kernel launch, or one ATen operator."""

    name: str
    accesses: dict[str, Access] = field(default_factory=dict)
    """By the kernel's argument."""
    statistics: bool = False
    """True if it would not run without statistics."""


@dataclass
class Traffic:
    """Bytes by where they come from and go to."""

    hbm: int = 0
    l2: int = 0

    @property
    def requested(self) -> int:
        return self.hbm + self.l2


def traffic_of_each(launches: Iterable[Launch]) -> list[Traffic]:
    """Traffic of every launch of a sequence, by the rule above."""
    found: list[Traffic] = []
    last_touched: dict[str, int] = {}
    for index, launch in enumerate(launches):
        traffic = Traffic()
        for access in launch.accesses.values():
            kept = access.size <= L2_KEEPS_BYTES
            fresh = min(access.loaded, access.size)
            again = access.loaded - fresh
            since = index - last_touched.get(access.tensor, -L2_KEEPS_LAUNCHES - 1)
            in_l2 = (again if kept else 0) + (fresh if kept and since <= L2_KEEPS_LAUNCHES else 0)
            traffic.l2 += in_l2
            traffic.hbm += access.loaded - in_l2 + access.stored
            last_touched[access.tensor] = index
        found.append(traffic)
    return found


def total_traffic(launches: Iterable[Launch]) -> Traffic:
    """Traffic of a whole sequence."""
    each = traffic_of_each(launches)
    return Traffic(sum(t.hbm for t in each), sum(t.l2 for t in each))
