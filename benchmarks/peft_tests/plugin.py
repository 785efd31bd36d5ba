"""A pytest plugin: every LoRA linear that PEFT makes gets the fused forward, and each test says how many ran fused.

Tests of another tuner are left out: they are named by a configuration that is not a LoraConfig.

python -m pytest -p benchmarks.peft_tests.plugin ...     with two variables of the environment:
PEFT_TESTS_LINES    a folder for lines of {"test", "outcome", "reason", "fused", "made", "why"}, a file for each
                    process; `why` calls were PEFT's, and the number of layers of each reason
PEFT_TESTS_FUSED    1: the fused forward; 0: PEFT's
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import peft.tuners.lora.layer as peft_layer
import pytest
from lora_train.instrument.messages import say
from lora_train.instrument.record import patch
from peft import LoraConfig, PeftConfig

_fused_layers: set[int] = set()
_made: list[str] = []
_unfused: dict[str, set[int]] = defaultdict(set)
_outcomes: dict[str, tuple[str, str]] = {}


class StandIn(ModuleType):
    """A library that PEFT's tests import and those that run here do not call."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def pytest_configure(config: Any) -> None:
    for name in ("diffusers", "parameterized", "scipy"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = StandIn(name)
    _watch_new_layers(os.environ["PEFT_TESTS_FUSED"] == "1")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    others = [item for item in items if _of_another_tuner(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if not _of_another_tuner(item)]
    for name, module in sys.modules.items():
        if name.endswith("testing_utils") and hasattr(module, "_HUB_MODEL_ACCESSES"):
            module._HUB_MODEL_ACCESSES = _Known(int)  # pyright: ignore[reportAttributeAccessIssue]


class _Known(defaultdict[str, int]):
    """Names that PEFT's tests think they have asked the hub for before, so that they do not go online."""

    def __contains__(self, key: object) -> bool:
        return True


def _of_another_tuner(item: Any) -> bool:
    """Whether a configuration class among the test's parameters is of a tuner that makes no LoRA linear."""
    values = getattr(item, "callspec", None) and item.callspec.params.values()
    classes = [one for one in values or () if isinstance(one, type) and issubclass(one, PeftConfig)]
    return bool(classes) and not any(issubclass(one, LoraConfig) for one in classes)


def _watch_new_layers(fuse: bool) -> None:
    linear: Any = peft_layer.Linear
    make, compute = linear.__init__, patch._fused

    def made(layer: Any, *args: Any, **kwargs: Any) -> None:
        make(layer, *args, **kwargs)
        _made.append(args[1] if len(args) > 1 else kwargs["adapter_name"])
        if fuse:
            patch._replace(patch.Group(["layer"], [layer]), 0, layer)

    def counted(x: Any, layers: Any, *args: Any) -> Any:
        _fused_layers.update(map(id, layers))
        return compute(x, layers, *args)

    kind: Any = patch.FusedForward
    forward = kind.forward

    def watched(replaced: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if reason := _why(replaced._module, x, bool(args or kwargs)):
            _unfused[reason].add(id(replaced._module))
        return forward(replaced, x, *args, **kwargs)

    linear.__init__ = made
    patch._fused = counted
    kind.forward = watched


def _why(layer: Any, x: Any, has_more: bool) -> str:
    """Why this call is PEFT's; empty if it is fused."""
    if has_more:
        return "adapter_names or other arguments"
    if layer.disable_adapters or layer.merged:
        return "adapter off" if layer.disable_adapters else "merged"
    return (
        say(word)
        if (word := patch.why_not(layer))
        else ""
        if patch.serves(layer, x)
        else "torch.func or another device"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    report: Any = yield
    if call.when == "setup":
        _fused_layers.clear()
        _made.clear()
        _unfused.clear()
        _outcomes[item.nodeid] = (report.outcome, _reason(report))
    elif report.outcome != "passed" or call.when == "call":
        _outcomes[item.nodeid] = (report.outcome, _reason(report))
    if call.when == "teardown":
        outcome, reason = _outcomes.pop(item.nodeid)
        line = {"test": item.nodeid, "outcome": outcome, "reason": reason, "fused": len(_fused_layers)}
        line |= {"made": len(_made), "why": {reason: len(layers) for reason, layers in _unfused.items()}}
        with (Path(os.environ["PEFT_TESTS_LINES"]) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return report


def _reason(report: Any) -> str:
    """The last line of what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return "" if report.passed else (crash.message if crash else str(report.longrepr)).strip()[:300]
