"""The rounds of a study: the first as drawn, a later one of the best of the round before, longer."""

from __future__ import annotations

from typing import Any

from .folder import Attempt
from .study_file import StudyFile

Planned = tuple["dict[str, Any] | None", int]
"""Settings, None where they are drawn when the trial is taken; and steps."""


def planned(study: StudyFile, plan: list[dict[str, Any]], found: dict[int, Attempt]) -> list[Planned]:
    """Every trial that is known by now."""
    return [(settings, study.steps) for settings in plan]
