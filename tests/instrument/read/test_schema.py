"""The table of columns against everything that writes, reads or draws them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from lora_train.instrument.read.history import COLUMNS as HISTORY
from lora_train.instrument.read.load import STATS_COLUMNS
from lora_train.instrument.read.schema import (
    ADDED,
    COMPUTED,
    EXPONENTS,
    STATISTICS,
    STEP_COLUMNS,
    Column,
    Evaluation,
    StepLine,
    Summary,
    columns_of,
    kind_of,
)
from lora_train.instrument.read.store import COLUMNS, EXPONENT_COLUMNS, FLOAT_COLUMNS
from lora_train.instrument.show.report import charts

from ...conftest import ROOT

RECORDS = {"step": StepLine, "evaluation": Evaluation, "summary": Summary}
TABLES: dict[str, dict[str, Column]] = {
    **{name: columns_of(record) for name, record in RECORDS.items()},
    "added": ADDED,
    "statistics": STATISTICS,
    "exponents": EXPONENTS,
    "computed": COMPUTED,
}
JSON_TYPES = {"int": int, "float": (float, int), "bool": bool, "list of int": list}
LINES = [json.loads(line) for file in sorted((ROOT / "tests/runs").glob("*/metrics.jsonl")) for line in file.open("rb")]


def test_the_names_on_disk_are_these_and_in_this_order():
    """What is written by one version is read by the next."""
    assert " ".join(STEP_COLUMNS) == (
        "step updates epoch loss learning_rate grad_norm loss_scale skipped nonfinite_micro_batches tokens "
        "supervised_tokens supervised_tokens_squared tokens_per_second step_seconds max_sequence_length "
        "memory_allocated_gib memory_reserved_gib host_memory_gib eval_seconds_total save_seconds_total"
    )
    assert " ".join(COLUMNS) == (
        "sumsq absmax n_nan n_inf n_overflow n_underflow n_subnormal n_zero n micro_sumsq first_bad_micro "
        "first_bad_rank"
    )
    assert FLOAT_COLUMNS == ("sumsq", "absmax", "micro_sumsq")
    assert EXPONENT_COLUMNS == ("exponent_first", "exponent_counts")
    assert (*COLUMNS, "norm") == STATS_COLUMNS


def test_the_first_statistics_are_the_fields_of_a_kernels_row():
    from lora_train.kernels.statistics.reduce import FIELDS

    assert COLUMNS[: len(FIELDS)] == FIELDS


def test_the_reader_has_every_column_of_a_step_and_the_page_draws_some():
    assert ("start", *STEP_COLUMNS) == HISTORY
    drawn = {*charts.SCHEDULE, *charts.MEMORY}
    assert drawn - set(STEP_COLUMNS) == set()


@pytest.mark.parametrize("kind", RECORDS)
def test_recorded_lines_hold_the_columns_of_their_kind_in_order_and_with_their_types(kind):
    lines = [line for line in LINES if kind_of(line) == kind]
    assert lines
    columns = {"start": ADDED["start"], **({"step": TABLES["step"]["step"]} if kind == "evaluation" else {})}
    columns |= TABLES[kind] | ({"rows": ADDED["rows"]} if kind == "step" else {})
    for line in lines:
        assert [name for name in columns if name in line] == list(line)
        assert set(columns) - set(line) <= {"rows", "supervised_tokens_squared"}  # which is younger than the runs
        for name, value in line.items():
            column = columns[name]
            assert value is not None or column.null, name
            assert value is None or isinstance(value, JSON_TYPES[column.type]), name
            assert isinstance(value, bool) == (column.type == "bool" and value is not None), name


def test_a_record_takes_no_column_that_the_table_lacks_and_lacks_none():
    values = dict.fromkeys(STEP_COLUMNS, 0)
    assert list(vars(StepLine(**values))) == list(STEP_COLUMNS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gpu_watts"):
        StepLine(**values, gpu_watts=300)  # type: ignore[arg-type, call-arg]
    with pytest.raises(TypeError, match="loss"):
        StepLine(**{name: 0 for name in STEP_COLUMNS if name != "loss"})  # type: ignore[arg-type]


@pytest.mark.parametrize("table", TABLES)
def test_every_column_says_in_both_languages_what_it_is(table):
    for name, column in TABLES[table].items():
        assert column.type in JSON_TYPES, name
        assert column.writers, name
        texts = [(column.en, column.ko), *([column.null] if column.null else [])]
        for english, korean in texts:
            assert re.search("[a-z]", english), name
            assert re.search("[가-힣]", korean), name
            assert not re.search("[가-힣]", english), name


def test_the_table_imports_no_torch_numpy_or_pandas():
    code = "import sys, lora_train.instrument.read.schema; print({'torch', 'numpy', 'pandas'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
