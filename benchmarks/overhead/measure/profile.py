"""Where the time of a step goes, by kind of work, from torch's profiler.

The profiler knows operators by name, and which runs inside which. What has no operator of its own (statistics in C,
the loops in C, the optimizer) is named here for the one step that is profiled.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .meter import synchronize


class Rule(NamedTuple):
    """An operator is of a kind if its own name fits, or where `within`, that of any it runs inside."""

    kind: str
    within: bool
    pattern: re.Pattern[str]


# Products with A and B, and what shares a pass over memory with them: dropout, widening, rounding, statistics.
LORA = "LoRA passes"
PRODUCTS = "matrix products"
# The first rule that fits decides.
RULES = (
    Rule(LORA, True, re.compile(f"^{LORA}$")),
    Rule("statistics", True, re.compile(r"^statistics$|^lora_train::(store|tensor_stats|cast_with_stats)")),
    Rule("optimizer", True, re.compile(r"^optimizer$|^Optimizer\.")),
    Rule("dropout", True, re.compile("dropout", re.IGNORECASE)),
    Rule("attention", True, re.compile("attention|flash|sdpa", re.IGNORECASE)),
    Rule(PRODUCTS, True, re.compile(f"^{PRODUCTS}$")),
    Rule(PRODUCTS, False, re.compile(r"^aten::(mm|addmm_?|bmm|baddbmm_?|mv|addmv_?|linear)$|mkldnn_linear")),
    Rule("loss", True, re.compile("cross_entropy|nll_loss|log_softmax|LogSoftmax")),
    Rule(
        "norm, rotary, activation, residual",
        True,
        re.compile(
            r"norm|rotary|rope|silu|glu|gelu|"
            r"^aten::(mul|add|sub|neg|cat|pow|mean|rsqrt|sigmoid|sum|div)_?$|"
            r"^(Mul|Add|Sub|Neg|Cat|Pow|Mean|Rsqrt|Slice|Silu|Gelu|Div)Backward\d",
            re.IGNORECASE,
        ),
    ),
)
REST, BETWEEN = "the rest (copies, views, embedding)", "between operators (Python)"

# (module, class or None, function) -> the name under which it is seen
NAMED = {
    ("kernels.cpu", None, "stats"): "statistics",
    ("kernels.cpu", None, "round_with_stats"): "statistics",
    ("kernels.cpu", None, "exponents"): "statistics",
    ("kernels.statistics.tensor_stats_aten", None, "tensor_stats_aten"): "statistics",
    ("instrument.record.recorder", "Recorder", "begin_step"): "statistics",
    ("instrument.record.recorder", "Recorder", "finish_step"): "statistics",
    ("trainer.loop.optim", "Optimizer", "gradient_rows"): "statistics",
    ("trainer.loop.optim", "Optimizer", "step"): "optimizer",
    ("kernels.lora_linear.passes", None, "_drop_"): "dropout",
    ("kernels.cpu", None, "read"): LORA,
    ("kernels.cpu", None, "update"): LORA,
    ("kernels.cpu", None, "product"): PRODUCTS,
    ("kernels.cpu", None, "attention"): "attention",
    ("kernels.cpu", None, "norm"): "norm",
    ("kernels.cpu", None, "norm_backward"): "norm",
    ("kernels.cpu", None, "gate"): "silu",
    ("kernels.cpu", None, "gate_backward"): "silu",
    ("kernels.cpu", None, "rotate"): "rotary",
}


class Kinds:
    """Seconds of a step by kind; the step is lora-train's own."""

    def __init__(self) -> None:
        from torch.profiler import profile

        self._restore = [named(place, name) for place, name in NAMED.items()]
        self._profile: Any = profile(acc_events=True)
        self._profile.start()
        self._started = time.perf_counter()

    def end(self) -> dict[str, Any]:
        synchronize()
        wall = time.perf_counter() - self._started
        self._profile.stop()
        for restore in self._restore:
            restore()
        return {"kinds": by_kind(self._profile.events(), wall)}


def named(function: tuple[str, str | None, str], name: str) -> Callable[[], None]:
    """Lets the profiler see a function under a name.

    Args:
        function: a key of NAMED.

    Returns:
        what undoes it.
    """
    from torch.profiler import record_function

    module, owner, attribute = function
    place = importlib.import_module(f"lora_train.{module}")
    if owner is not None:
        place = getattr(place, owner)
    inner = getattr(place, attribute)

    def seen(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return inner(*args, **kwargs)

    setattr(place, attribute, seen)
    return lambda: setattr(place, attribute, inner)


def by_kind(events: Any, wall: float) -> dict[str, float]:
    """Seconds of each kind, largest first; on a GPU those of its kernels, else those of the host.

    Args:
        events: the profiler's, each with name, cpu_parent, self_cpu_time_total and self_device_time_total
            (microseconds).
        wall: seconds of the step; what no operator took is `BETWEEN`.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    seconds: dict[str, float] = {}
    for event in events:
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kind = kind_of([event.name, *parents(event)])
        seconds[kind] = seconds.get(kind, 0.0) + took / 1e6
    seconds[BETWEEN] = max(0.0, wall - sum(seconds.values()))
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def parents(event: Any) -> Iterator[str]:
    """Names of what an event runs inside, nearest first."""
    while (event := event.cpu_parent) is not None:
        yield event.name


def kind_of(chain: list[str]) -> str:
    """The kind of an operator, given its name and the names of what it runs inside."""
    for rule in RULES:
        if any(rule.pattern.search(name) for name in (chain if rule.within else chain[:1])):
            return rule.kind
    return REST
