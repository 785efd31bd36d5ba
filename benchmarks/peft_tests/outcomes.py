"""What two runs of the same tests say of each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

RAN = ("passed", "failed")


@dataclass(frozen=True)
class Outcome:
    """Of one test.

    Attributes:
        outcome: passed, failed or skipped.
        reason: what went wrong, or why it was skipped; empty if it passed.
        fused: LoRA linears that the fused operator computed in it.
        made: LoRA linears that were made in it.
        why: why LoRA linears were called and not fused, and how many.
    """

    outcome: str
    reason: str
    fused: int
    made: int
    why: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A test that ends otherwise with the fused forward."""

    test: str
    plain: Outcome
    fused: Outcome

    def __str__(self) -> str:
        sides = [f"{one.outcome} {one.reason.partition(chr(10))[0]}".strip() for one in (self.plain, self.fused)]
        return f"{self.test}\n    PEFT's: {sides[0]}\n    fused:  {sides[1]}"


def read_outcomes(folder: Path) -> dict[str, Outcome]:
    """By test, of every file of lines in a folder; a line that a killed process tore is left out."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            found[line["test"]] = Outcome(line["outcome"], line["reason"], line["fused"], line["made"], line["why"])
    return found


def differences(plain: dict[str, Outcome], fused: dict[str, Outcome]) -> list[Difference]:
    """Tests whose outcome is not the same, by name; not those that one of the runs had no time for."""
    return [
        Difference(test, plain[test], fused[test])
        for test in sorted(plain.keys() & fused.keys())
        if plain[test].outcome != fused[test].outcome
    ]


def summary(plain: dict[str, Outcome], fused: dict[str, Outcome]) -> list[str]:
    """Lines that say how much ran, how much of it fused, and what differs."""
    ran = [test for test, one in fused.items() if one.outcome in RAN]
    n_layers = sum(one.fused for one in fused.values() if one.outcome == "passed")
    lines = [
        f"{_count(plain.values())} with PEFT's own forward",
        f"{_count(fused.values())} with the fused forward",
        f"{len(ran)} tests ran, {len(plain.keys() ^ fused.keys())} only in one of the two runs",
        f"{sum(fused[test].made > 0 for test in ran)} of them made LoRA linears",
        f"{n_fused(fused)} passed and computed LoRA linears with the fused operator, {n_layers} layers",
    ]
    reasons = Counter(_reason(fused[test]) for test in ran if fused[test].made and not fused[test].fused)
    lines += [f"    {n} made some and fused none: {reason}" for reason, n in reasons.most_common()]
    found = differences(plain, fused)
    return [*lines, f"{len(found)} differences", *map(str, found)]


def n_fused(outcomes: dict[str, Outcome]) -> int:
    """Tests that passed with a LoRA linear that the fused operator computed."""
    return sum(one.outcome == "passed" and one.fused > 0 for one in outcomes.values())


def _reason(one: Outcome) -> str:
    """Why most of a test's LoRA linears were not fused."""
    return max(one.why, key=lambda reason: one.why[reason]) if one.why else "saved, loaded or looked at, never called"


def _count(outcomes: Iterable[Outcome]) -> str:
    names = [one.outcome for one in outcomes]
    return ", ".join(f"{names.count(name)} {name}" for name in ("passed", "failed", "skipped"))
