"""The house keeps its budgets: sizes, rooms, the directions of imports, and tests where their sources are."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from .conftest import ROOT

LINES, TEST_LINES, FUNCTION_LINES, ARGUMENTS, FILES = 350, 600, 60, 6, 14
PRESCRIBED = ("jit", "custom_op", "register_fake")
"""Decorators of functions whose arguments a compiler or torch reads."""
MORE_ARGUMENTS = {
    "benchmarks/fake_cuda/driver.py:do_compile": "stands for a private method of Triton",
    "instrument/attach/instrument.py:__init__": "keywords of the documented API",
    "kernels/lora_linear/__init__.py:lora_linear": "keywords of the public operator",
    "kernels/lora_linear/ops.py:lora_linear_op": "torch reads its schema from the signature",
    "kernels/cross_entropy.py:_linear_cross_entropy": "torch reads its schema from the signature",
    "kernels/attention/causal.py:_compute_backward": "torch reads its schema from the signature",
}

PRODUCT = ("kernels", "instrument", "trainer")


@cache
def tracked() -> tuple[str, ...]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(name for name in listed.splitlines() if (ROOT / name).is_file() and not name.startswith("typings/"))


def python_files(*tops: str) -> list[str]:
    return [name for name in tracked() if name.endswith(".py") and name.partition("/")[0] in tops]


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(parsed(name)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_no_module_is_too_long():
    sources = [name for name in tracked() if name.endswith((".py", ".c", ".h", ".js"))]
    too_long = {
        name: lines
        for name in sources
        for lines in [(ROOT / name).read_text(encoding="utf-8").count("\n")]
        if lines > (TEST_LINES if name.startswith("tests/") else LINES)
    }
    assert too_long == {}


def test_no_function_is_too_long():
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name in python_files(*PRODUCT, "benchmarks", "examples", "tests")
        for node in functions(name)
    }
    assert {where: lines for where, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def test_no_function_takes_too_many_arguments():
    found = {}
    for name in python_files(*PRODUCT, "benchmarks", "examples"):
        for node in functions(name):
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            if not any(word in decorators for word in PRESCRIBED):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                is_method = bool(arguments) and arguments[0].arg in ("self", "cls")
                found[f"{name}:{node.name}"] = len(arguments) - is_method
    assert {where: n for where, n in found.items() if n > ARGUMENTS and where not in MORE_ARGUMENTS} == {}
    assert [where for where in MORE_ARGUMENTS if found.get(where, 0) <= ARGUMENTS] == [], "no longer needed"


def test_no_folder_holds_too_many_files():
    counts = Counter(str(Path(name).parent) for name in tracked() if name.endswith((".py", ".c", ".h", ".js", ".css")))
    assert {folder: count for folder, count in counts.items() if count > FILES and not folder.startswith("tests")} == {}


def room(module: str) -> str:
    """trainer.data of trainer/data/masks.py; trainer itself of what stands on its ground."""
    parts = module.split(".")
    return ".".join(parts[: 2 if len(parts) > 2 else 1])


def imports(name: str) -> Iterator[str]:
    """The modules of the product that a file imports, without lora_train."""
    package = Path(name).parent.parts
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if is_module(inner) else module


@cache
def is_module(dotted: str) -> bool:
    path = ROOT / dotted.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


@cache
def arrows() -> dict[str, set[str]]:
    """Room -> the rooms that its modules import from."""
    found: dict[str, set[str]] = {}
    for name in python_files(*PRODUCT):
        module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        here = room(module) if (ROOT / name).name != "__init__.py" else room(f"{module}.x")
        for target in imports(name):
            there = room(target if (ROOT / target.replace(".", "/")).with_suffix(".py").is_file() else f"{target}.x")
            if there != here:
                found.setdefault(here, set()).add(there)
    return found


def test_imports_go_down_from_trainer_to_instrument_to_kernels():
    floors = {top: floor for floor, top in enumerate(PRODUCT)}
    up = [
        (here, there)
        for here, others in arrows().items()
        for there in others
        if floors[here.partition(".")[0]] < floors[there.partition(".")[0]]
    ]
    assert up == []


@pytest.mark.parametrize("top", PRODUCT)
def test_no_circle_of_rooms(top: str):
    """Modules on the ground of a folder (errors, console, the command line) belong to no room."""
    graph = {
        here: {there for there in others if there.startswith(f"{top}.")}
        for here, others in arrows().items()
        if here.startswith(f"{top}.")
    }
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


# Sources without a test file of their name -> the test files that test them.
TESTED_ELSEWHERE = {
    ("instrument/advise/rules", "budget common habits length search stability"): "benchmarks/test_studies.py",
    ("instrument/attach", "instrument"): "instrument/attach/test_callback.py",
    ("instrument/attach", "trainer"): "instrument/attach/test_peers.py",
    ("instrument/judge", "metrics"): "instrument/judge/explain/rules/test_metric.py",
    ("instrument/judge/explain", "finding"): "instrument/judge/explain/test_reconcile.py",
    (
        "instrument/judge/explain/rules",
        "gradients loss outcome resources schedule stock",
    ): "instrument/judge/explain/rules/test_rules.py",
    ("instrument/read", "scores"): "benchmarks/docs_tables/test_pages.py",
    ("instrument/read", "compact load"): "instrument/read/test_store.py",
    ("instrument/read", "history"): "instrument/judge/explain/test_history.py instrument/read/logs/test_sources.py",
    (
        "instrument/read/logs",
        "console exports pairs run_folder state table values",
    ): "instrument/read/logs/test_corpus.py",
    ("instrument/record", "once probe sites"): "instrument/record/test_recorder.py",
    (
        "instrument/record/hooks",
        "hook passes unfused",
    ): "instrument/attach/test_peers.py instrument/record/test_recorder.py",
    ("instrument/record", "four_bit"): "test_without_bitsandbytes.py",
    ("instrument/record", "capsule"): "trainer/collapse/test_handle.py",
    ("instrument/show/compare", "differences parting"): "instrument/show/compare/test_compare.py",
    ("instrument/show/report", "data"): "instrument/show/report/test_aggregate.py",
    ("kernels", "operators"): "kernels/elementwise/test_elementwise.py",
    (
        "kernels/elementwise",
        "gated gelu layer_norm rms_norm rotary",
    ): "kernels/elementwise/test_elementwise.py kernels/elementwise/test_elementwise_triton.py",
    (
        "kernels/elementwise",
        "activation_triton norm_triton rotary_triton",
    ): "kernels/elementwise/test_elementwise_triton.py",
    ("kernels/frozen", "base_product"): "kernels/lora_linear/test_lora_linear.py",
    (
        "kernels/lora_linear",
        "aten kernels launch ops projections reference tiles totals",
    ): "kernels/lora_linear/test_lora_linear.py kernels/lora_linear/test_shapes.py",
    (
        "kernels/lora_linear/read",
        "grad scratch",
    ): "kernels/lora_linear/read/test_launches.py kernels/lora_linear/test_scratch.py",
    ("kernels", "dropout"): "kernels/lora_linear/test_lora_linear.py",
    ("kernels", "ledger"): "kernels/lora_linear/test_scratch.py",
    ("kernels/statistics", "rounding"): "kernels/elementwise/test_elementwise_triton.py",
    ("kernels/statistics", "pending_rows"): "kernels/lora_linear/test_lora_linear.py",
    ("trainer", "errors"): "trainer/checks/test_read_config.py",
    ("trainer", "console"): "trainer/test_cli.py",
    ("trainer", "signals"): "trainer/run/test_interrupted.py",
    ("trainer/collapse", "replay_arguments"): "trainer/test_cli.py trainer/collapse/test_replay.py",
    ("trainer/collapse", "extract screen what_if"): "trainer/collapse/test_handle.py",
    ("trainer/collapse", "recorded"): "trainer/collapse/test_replay.py",
    ("trainer/checks", "own_code"): "trainer/checks/test_task_checks.py",
    ("trainer/config", "names schema training"): "trainer/checks/test_read_config.py",
    ("trainer/config", "sections"): "trainer/run/test_model_card.py",
    ("trainer/config", "settings"): "trainer/collapse/test_remedy.py",
    ("trainer/data", "dataset load"): "trainer/data/test_examples.py",
    ("trainer/data/labels", "balance rows"): "trainer/data/labels/test_load.py",
    ("trainer/dry_run", "fake_model"): "trainer/dry_run/test_memory.py",
    ("trainer/dry_run", "headroom"): "trainer/dry_run/test_show.py",
    ("trainer/export", "adapter_file command families model_file"): "trainer/export/test_write.py",
    ("trainer/loop", "warm_up"): "benchmarks/test_fake_cuda.py",
    ("trainer/loop", "snapshots"): "trainer/collapse/test_remedy.py",
    ("trainer/dry_run", "outlook"): "trainer/checks/test_tips.py",
    ("trainer/loop", "components"): "trainer/loop/test_train.py",
    ("trainer/model", "loss"): "trainer/loop/test_train.py",
    ("trainer/run", "lock start"): "trainer/test_cli.py trainer/run/test_endings.py",
    ("trainer/sweep", "cost"): "trainer/sweep/test_command.py",
    ("trainer/sweep", "reading"): "trainer/sweep/test_study_file.py",
    ("trainer/sweep", "trial"): "trainer/sweep/test_command.py",
    ("trainer/verbs/answers", "classifier evaluate"): "trainer/verbs/answers/test_predict.py",
    ("trainer/verbs", "adapter_folder"): "trainer/verbs/test_merge.py",
    ("trainer/verbs/entries", "adapters"): "trainer/verbs/test_merge.py trainer/verbs/test_chat.py",
}


def source_of(test: str) -> str:
    return test.removeprefix("tests/").replace("/test_", "/")


def test_tests_mirror_the_sources():
    """A source module has a test of its name in the same room, or is listed with where it is tested."""
    tests = {source_of(name) for name in tracked() if name.startswith("tests/") and "/test_" in name}
    without = {
        name
        for name in python_files(*PRODUCT)
        if name not in tests and Path(name).name != "__init__.py" and any(functions(name))
    }
    listed = {
        f"{room}/{name}.py": places for (room, names), places in TESTED_ELSEWHERE.items() for name in names.split()
    }
    assert sorted(without - listed.keys()) == []
    assert sorted(listed.keys() - without) == [], "gone, or tested by a file of its name now"
    assert [
        place for places in listed.values() for place in places.split() if not (ROOT / "tests" / place).is_file()
    ] == []
