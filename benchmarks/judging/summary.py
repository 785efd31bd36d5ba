"""The table as docs/measured.md has it: cells of one question together, the worst of them named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .__main__ import Rate

HEAD = (
    "| of | what happens | values | cells | bar | worst cell | of all | short |",
    "|---|---|---|---|---|---|---|---|",
)
# What cells of one question differ by: the noise, sigma, how many rows.
_NOISE = re.compile(r", (?:Gaussian|Student t3|5% outliers|2 decimals|4 decimals|\d+ rows)$")
_SIGMA = re.compile(r"log-normal [\d.]+")


def summary(rates: Sequence[Rate]) -> list[str]:
    """A line for each question, in the order of the cells."""
    groups: dict[tuple[str, str, bool, float], list[Rate]] = {}
    for rate in rates:
        name = _SIGMA.sub("log-normal", _NOISE.sub("", rate.cell.name))
        groups.setdefault((rate.cell.part, name, rate.cell.found, rate.cell.bar), []).append(rate)
    return [*HEAD, *(_line(*asked, own) for asked, own in groups.items())]


def _line(part: str, name: str, found: bool, bar: float, own: list[Rate]) -> str:
    worst = (min if found else max)(own, key=lambda rate: rate.said / rate.of)
    sizes = sorted({rate.cell.n for rate in own})
    values = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    held = f"{'found, at least' if found else 'false, at most'} {100 * bar:.0f}%"
    share = 100 * sum(rate.said for rate in own) / sum(rate.of for rate in own)
    at = f"{100 * worst.said / worst.of:.1f}% (of {worst.cell.n:,})"
    short = ", ".join(rate.cell.name + f" at {rate.cell.n:,}" for rate in own if not rate.passes) or "none"
    return f"| {part} | {name} | {values} | {len(own)} | {held} | {at} | {share:.1f}% | {short} |"
