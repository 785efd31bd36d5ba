"""`data.packing`: rows put together in bins of at most `data.cutoff_len` tokens.

Which lengths share a bin is found once, by best-fit decreasing: the longest row first, each into the fullest bin that
still has room (Johnson 1973: never more than 11/9 of the fewest bins possible, plus 1). Which of the rows of that
length it is, and the order of the bins, are drawn anew for every epoch. So the number of bins, and with it the number
of steps in an epoch, is a function of the lengths alone, while rows meet others in every epoch.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence


def fill_bins(lengths: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """The lengths in each bin, longest first.

    Args:
        lengths: of all rows, none above the capacity.
        capacity: most tokens in a bin.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # tokens of room -> bins that have it
    rooms: list[int] = []  # the keys that have any, ascending
    for length in sorted(lengths, reverse=True):
        at = bisect_left(rooms, length)
        if at == len(rooms):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room = rooms[at]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        bins[chosen].append(length)
        left = room - length
        if left > 0:
            if not with_room[left]:
                insort(rooms, left)
            with_room[left].append(chosen)
    return [tuple(lengths_of_bin) for lengths_of_bin in bins]


def epoch_bins(
    bins: Sequence[tuple[int, ...]], lengths: Sequence[int], order: Sequence[int], rng: random.Random
) -> list[tuple[int, ...]]:
    """The rows in each bin, in the order of one epoch.

    Args:
        bins: the lengths in each, from `fill_bins`.
        lengths: of all rows.
        order: the rows in an order of this epoch: among rows of one length the first goes into the first bin.
        rng: shuffles the bins.
    """
    waiting: dict[int, list[int]] = defaultdict(list)
    for row in reversed(order):
        waiting[lengths[row]].append(row)
    filled = [tuple(waiting[length].pop() for length in lengths_of_bin) for lengths_of_bin in bins]
    rng.shuffle(filled)
    return filled
