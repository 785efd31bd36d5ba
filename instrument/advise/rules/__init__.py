"""The rules by name, one file a group; each is a function of the study that yields what it has to say."""

from __future__ import annotations

from . import budget, habits, length, search, stability

RULES = budget.RULES | length.RULES | search.RULES | stability.RULES | habits.RULES
