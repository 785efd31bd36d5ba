from __future__ import annotations

import re

import pytest
from lora_train.instrument.read.schema import ADDED, COMPUTED, EXPONENTS, STATISTICS, Evaluation, StepLine, Summary

from benchmarks.docs_tables import DOCS, columns_of, numbers, pages, table


@pytest.mark.parametrize("name", pages())
def test_the_page_in_the_repository_is_the_one_that_the_code_gives(name):
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], "run: make docs-tables"


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_every_number_is_defined_once(lang):
    tables = [ADDED, STATISTICS, EXPONENTS, COMPUTED, *map(columns_of, (StepLine, Evaluation, Summary))]
    names = [name for columns in tables for name in columns]
    defined = re.findall(r"^\| `(\w+)` \|", numbers(lang), re.M)
    assert len(set(names)) == len(names)
    assert sorted(defined) == sorted(names)


def test_a_bar_in_a_cell_does_not_end_it():
    assert table([("a", "b"), ("max(|x|)", "1")]).splitlines() == ["| a | b |", "|---|---|", "| max(\\|x\\|) | 1 |"]
