"""`lora-train inspect ADAPTER`: is every value of an adapter finite, and which layers have moved.

The update of a module is s B A (A [r, K], B [N, r]); its Frobenius norm comes from two r x r matrices:

    |s B A|_F = s sqrt(trace((A A^T)(B^T B)))

AdaLoRA's is s B (E * A) with E [r, 1], and s = lora_alpha / (init_r + 1e-5), as peft computes it. Experts whose weights
are one parameter (target_parameters) have A [n r, K] and B [N, r n]: n products, whose norms add up as squares. DoRA
scales the rows of W + s B A, so what its weights changed by takes the base model; s B A alone is told.
B starts at 0, so a module whose B is all zero has not moved at all ("dead"). Sums run in float64. No torch: the
answer is there before torch would be imported.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from ...instrument.messages import say
from ..errors import UserError, first_line, problem
from ..patterns import require_quick
from ..saved.sums import wrong_sum
from .adapter_folder import SETTINGS, adapted_parameters, find_weights, ranks_of, read_settings_of, scaling

EXIT_NON_FINITE = 3
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_PEFT_PREFIX = "base_model.model."
_TAKEN_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's weights
_LORA = re.compile(r"(.+)\.lora_(?:embedding_)?([ABE])(?:\.(?!weight|bias)\w+)?(?:\.weight)?")


@dataclass(frozen=True)
class Tensor:
    """What is known of one tensor. `norm` and `absmax` are of its finite values."""

    n: int
    n_nonfinite: int
    norm: float
    absmax: float


@dataclass(frozen=True)
class Module:
    """One LoRA layer.

    Attributes:
        module: name as in the base model.
        r: rank of each product.
        n: products in it: 1, or the experts of a parameter.
        scaling: s; 1.0 where no adapter_config.json tells.
        update_norm: |s B A|; None where A or B is not finite.
        dead: B is all zero, so the module does nothing yet.
    """

    module: str
    r: int
    scaling: float
    lora_A: Tensor
    lora_B: Tensor
    update_norm: float | None
    dead: bool
    n: int = 1

    @property
    def n_nonfinite(self) -> int:
        return self.lora_A.n_nonfinite + self.lora_B.n_nonfinite


@dataclass(frozen=True)
class Report:
    """An adapter file, its modules worst first: non-finite ones, dead ones, then by the size of their update.

    Attributes:
        other: tensors that are not lora_A or lora_B (DoRA's magnitudes, AdaLoRA's lora_E, modules_to_save), by name.
        scaling_known: whether an adapter_config.json gave the scaling.
        notes: what the numbers leave out, in words.
    """

    file: str
    modules: list[Module]
    other: dict[str, Tensor]
    scaling_known: bool
    notes: list[str]

    def totals(self) -> dict[str, Any]:
        """Sums over all modules, and the norm of all updates taken together."""
        tensors = [*(t for module in self.modules for t in (module.lora_A, module.lora_B)), *self.other.values()]
        updates = [module.update_norm for module in self.modules if module.update_norm is not None]
        return {
            "modules": len(self.modules),
            "values": sum(tensor.n for tensor in tensors),
            "nonfinite": sum(tensor.n_nonfinite for tensor in tensors),
            "nonfinite_modules": sum(module.n_nonfinite > 0 for module in self.modules),
            "dead_modules": sum(module.dead for module in self.modules),
            "update_norm": float(np.sqrt(np.square(updates).sum())),
            "largest_update_norm": max(updates, default=0.0),
            "median_update_norm": float(np.median(updates)) if updates else 0.0,
        }


def inspect_adapter(path: Path, as_json: bool) -> int:
    """Prints what is in an adapter and returns the exit code: 0, or 3 when a value is not finite.

    Raises:
        UserError: there is no adapter, or its file is torn or foreign.
    """
    report = read_report(path)
    if as_json:
        rows = [asdict(module) | {"n_nonfinite": module.n_nonfinite} for module in report.modules]
        print(json.dumps(asdict(report) | {"modules": rows, "totals": report.totals()}, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_summary(report)))
        if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
            _print_table(report)
        else:
            print("\n".join(_lines(report)))
    return EXIT_NON_FINITE if report.totals()["nonfinite"] else 0


def read_report(path: Path) -> Report:
    """Measures an adapter.

    Args:
        path: a run, checkpoint or adapter folder, or a .safetensors file.

    Raises:
        UserError: see inspect_adapter.
    """
    file = path if path.is_file() else find_weights(path)
    report = _report(file, read_settings_of(file.parent))
    if what := wrong_sum(file.parent, (file.name, SETTINGS)):
        report.notes.append(say("inspect.damaged", what=what))
    return report


def _report(file: Path, settings: dict[str, Any] | None) -> Report:
    tensors = _read_tensors(file)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    other: dict[str, Tensor] = {}
    for name, values in tensors.items():
        short = name.removeprefix(_PEFT_PREFIX)
        match = _LORA.fullmatch(short)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = values
        if not match or match[2] == "E":
            other[short] = measure(values)
    if settings is not None:
        require_quick("adapter.endless_pattern", settings, pairs, file=file.parent / SETTINGS)
    modules = [_module(file, name, pair, settings) for name, pair in pairs.items()]
    modules.sort(key=lambda module: (-module.n_nonfinite, not module.dead, -(module.update_norm or 0.0), module.module))
    return Report(str(file), modules, other, settings is not None, _notes(settings or {}, other))


def _notes(settings: Mapping[str, Any], other: Mapping[str, Tensor]) -> list[str]:
    magnitudes = [tensor.n for name, tensor in other.items() if ".lora_magnitude_vector" in name]
    notes = [say("inspect.dora", layers=len(magnitudes), n=sum(magnitudes))] if magnitudes else []
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_TAKEN_FROM_BASE):
        notes.append(say("inspect.changed_base", init=init))
    return notes


def require_finite(folder: Path) -> None:
    """Refuses an adapter that cannot be used, before a model is loaded for it.

    Raises:
        UserError: a value is not finite, or the file is torn or foreign.
    """
    report = _report(find_weights(folder), None)  # whatever the scaling is
    if n_bad := report.totals()["nonfinite"]:
        worst = [module.module for module in report.modules if module.n_nonfinite] or list(report.other)
        values = {"folder": folder, "quoted": shlex.quote(str(folder)), "n": n_bad, "module": worst[0]}
        raise UserError(problem("adapter.not_finite", **values))


def measure(values: np.ndarray) -> Tensor:
    """Counts and norms of one tensor."""
    finite = np.isfinite(values)
    n_finite = int(np.count_nonzero(finite))
    wide = (values if n_finite == values.size else values[finite]).astype(np.float64).ravel()
    absmax = float(np.abs(wide).max(initial=0.0))
    sumsq = float(np.einsum("i,i->", wide, wide))  # as fast as BLAS here, without its threads waiting for each other
    return Tensor(values.size, values.size - n_finite, math.sqrt(sumsq), absmax)


def update_norm(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    """|scale b a|_F of A [r, K] and B [N, r] without forming the N x K product."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    # both matrices are symmetric, so the trace of their product is the sum of the products of their entries
    return abs(scale) * math.sqrt(max(((a @ a.T) * (b.T @ b)).sum(), 0.0))


def experts_norm(a: np.ndarray, b: np.ndarray, n: int, scale: float) -> float:
    """|scale b_e a_e|_F over n experts: A [n r, K] one after another, B [N, r n] column by column."""
    if n == 1:
        return update_norm(a, b, scale)
    own_b = b.reshape(len(b), -1, n)
    return math.hypot(*(update_norm(own_a, own_b[:, :, e], scale) for e, own_a in enumerate(np.split(a, n))))


def _module(file: Path, name: str, pair: Mapping[str, np.ndarray], settings: dict[str, Any] | None) -> Module:
    if missing := {"A", "B"} - pair.keys():
        raise UserError(problem("inspect.unpaired", file=file, module=name, missing=f"lora_{missing.pop()}"))
    a, b = pair["A"], pair["B"]
    values = pair.get("E")  # of AdaLoRA, which may leave no rank at all to a layer
    whole = b.size // len(b) if b.ndim >= 2 and len(b) else 0
    fits = a.ndim >= 2 and a.shape[0] == whole and (a.size if values is None else values.shape == (whole, 1))
    if not fits:
        raise UserError(problem("inspect.ranks", file=file, module=name, a=a.shape, b=b.shape))
    # a convolution's A is [r, in, h, w] and its B [out, r, 1, 1]
    a, b = a.reshape(whole, math.prod(a.shape[1:])), b.reshape(len(b), whole)
    name, r, scale = _settings_of(file, name, whole, settings)
    stats_a, stats_b = measure(a), measure(b)
    parts = [stats_a, stats_b, *([] if values is None else [measure(values)])]
    bad = any(part.n_nonfinite for part in parts)
    dead = not bad and any(part.absmax == 0.0 for part in parts[1:])
    n = whole // r if r else 1
    update = None if bad else experts_norm(a if values is None else a * values, b, n, scale)
    return Module(name, r, scale, stats_a, stats_b, update, dead, n)


def _settings_of(file: Path, name: str, whole: int, settings: dict[str, Any] | None) -> tuple[str, int, float]:
    """Of a module with `whole` rows of A: its name, that of its parameter if it is one's, the rank, and the scaling."""
    if settings is None:
        return name, whole, 1.0
    config = file.parent / SETTINGS
    try:
        parameters = adapted_parameters(settings, name)
        if not parameters:
            return name, whole, scaling(settings, name, whole)
        ranks = ranks_of(settings, parameters)
        scalings = {scaling(settings, parameter, r) for r in ranks for parameter in parameters}
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, re.error) as error:
        raise UserError(problem("inspect.scaling", file=config, what=error)) from None
    if len(ranks) > 1 or len(scalings) > 1:
        raise UserError(problem("inspect.which_parameter", file=config, module=name, names=", ".join(parameters)))
    (r,), (scale,) = ranks, scalings
    if not isinstance(r, int) or r < 1 or whole % r:
        raise UserError(problem("inspect.experts", file=config, module=name, rows=whole, r=r))
    return parameters[0] if len(parameters) == 1 and whole > r else name, r, scale


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of an adapter file; bfloat16, which numpy does not have, becomes float32."""
    try:
        with safe_open(file, framework="np") as header:  # maps the file: a base model's shard is not read
            names = list(header.keys())
        if not any("lora_" in name for name in names):
            raise UserError(problem("inspect.no_lora", file=file, found=", ".join(names[:3]) or "-"))
        found = deserialize(file.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(problem("inspect.torn", file=file, what=first_line(error))) from None
    tensors = {}
    for name, raw in found:
        if raw["dtype"] not in DTYPES:
            raise UserError(problem("inspect.dtype", file=file, name=name, dtype=raw["dtype"]))
        values = np.frombuffer(raw["data"], DTYPES[raw["dtype"]]).reshape(raw["shape"])
        # a bfloat16 is the upper half of a float32
        tensors[name] = (values.astype(np.uint32) << 16).view(np.float32) if raw["dtype"] == "BF16" else values
    return tensors


def _summary(report: Report) -> Iterable[str]:
    totals = report.totals()
    yield say("inspect.file", file=report.file)
    ranks = sorted({module.r for module in report.modules})
    scales = sorted({module.scaling for module in report.modules})
    yield say(
        "inspect.modules",
        modules=totals["modules"],
        r=", ".join(map(str, ranks)),
        scaling=", ".join(f"{scale:g}" for scale in scales),
        values=totals["values"],
    )
    if not report.scaling_known:
        yield say("inspect.scaling_unknown")
    yield from report.notes
    if totals["nonfinite"]:
        share = totals["nonfinite"] / totals["values"]
        yield say("inspect.nonfinite", n=totals["nonfinite"], share=share, modules=totals["nonfinite_modules"])
        for name, tensor in report.other.items():
            if tensor.n_nonfinite:
                yield say("inspect.nonfinite_other", n=tensor.n_nonfinite, name=name)
    else:
        yield say("inspect.finite")
    yield say("inspect.dead", n=totals["dead_modules"])
    yield say(
        "inspect.update",
        total=totals["update_norm"],
        median=totals["median_update_norm"],
        largest=totals["largest_update_norm"],
    )


COLUMNS = ("bad_A", "bad_B", "|A|", "|B|", "|sBA|", "r", "module")  # bad: not finite


def _cells(module: Module) -> tuple[str, ...]:
    """One row of COLUMNS."""
    update = "-" if module.update_norm is None else "dead" if module.dead else f"{module.update_norm:.4g}"
    return (
        f"{module.lora_A.n_nonfinite:,}",
        f"{module.lora_B.n_nonfinite:,}",
        f"{module.lora_A.norm:.4g}",
        f"{module.lora_B.norm:.4g}",
        update,
        str(module.r),
        module.module,
    )


def _lines(report: Report) -> Iterable[str]:
    for row in (COLUMNS, *map(_cells, report.modules)):
        yield "".join(f"{cell:>9}  " for cell in row[:-2]) + f"{row[-2]:>3}  {row[-1]}"


def _print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "module" else "right", overflow="fold")
    for module in report.modules:
        style = "bold red" if module.n_nonfinite else "yellow" if module.dead else ""
        table.add_row(*(Text(cell) for cell in _cells(module)), style=style)
    Console(highlight=False).print(table)
