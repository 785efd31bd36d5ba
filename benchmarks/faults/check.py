"""Runs a case as it is meant to be run and holds what is on disk afterwards against what is known."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import shutil
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.data.batches import Plan
from lora_train.trainer.run.start import run
from safetensors.torch import load_file

from .draw import IN_WEIGHTS, Case
from .models import make_config, plan_of
from .plant import Expected, Plant, by_length, planted
from .weights import break_weight, lone_token

# What warn.forecast says in English, before the step.
FORECAST = "overflow near step"
EXIT_DONE, EXIT_COLLAPSED = 0, 3


@dataclass
class Report:
    """What came of a case.

    Attributes:
        found: kind, module and step of the first incident of the run that stops.
        wrong: what is not as it should be, one sentence each.
        output: what the runs printed.
        notes: what is worth knowing of a case that passed.
        seconds: of all its runs.
    """

    case: Case
    expected: Expected
    found: tuple[str | None, str | None, int | None] = (None, None, None)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    output: str = ""
    seconds: float = 0.0


def run_case(case: Case, models: Path, folder: Path) -> Report:
    """Runs a case, with both policies where it has a fault; its run folders are gone afterwards."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = time.monotonic()
    report = Report(case, Expected(case.kind or "", case.module, (case.step, case.step)))
    try:
        for policy in ("stop", "heal") if case.fault else ("heal",):
            _run(case, policy, models, folder / case.name / policy, report)
    except BaseException:  # a crash is a finding; the other cases go on
        report.wrong.append(f"crashed: {traceback.format_exc().strip().splitlines()[-1]}")
        report.output += traceback.format_exc()
    shutil.rmtree(folder / case.name, ignore_errors=True)
    report.seconds = time.monotonic() - started
    return report


def _run(case: Case, policy: str, models: Path, out: Path, report: Report) -> None:
    """One run in this process."""
    config = make_config(case, models, out, policy)
    plant = Plant(case)
    report.expected = plant.expected
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.ExitStack() as stack:
            plan = plan_of(config)
            if case.fault in IN_WEIGHTS:
                broken = break_model(case, models, out.with_name(f"{policy}-model"), plan, plant.expected)
                config = with_settings(config, {"model.name_or_path": str(broken)})
            if case.name.startswith("by_length"):
                stack.enter_context(by_length(config, plan))
            stack.enter_context(planted(plant))
            code = run(config, None)
    finally:
        report.output += f"--- {case.name} {policy}\n{printed.getvalue()}"
    if case.fault is None:
        wrong = _healthy(case, out, code, printed.getvalue())
    else:
        diagnoses = _diagnoses(out)
        if diagnoses and policy == "stop":
            first = diagnoses[0]
            report.found = (first["kind"], first["module"], first["step"])
        wrong = _named(plant.expected, diagnoses, plan, plant.modules)
        if policy == "stop":
            wrong += _stopped(plant.expected, out, code, diagnoses)
        else:
            wrong += _healed(plant.expected, out, code, diagnoses, case.n_steps)
        if policy == "heal":
            report.notes += _notes(diagnoses)
    wrong += [f"{path} holds a value that is not finite" for path in _not_finite(out)]
    report.wrong += [f"{policy}: {text}" for text in wrong]


def break_model(case: Case, models: Path, folder: Path, plan: Plan, expected: Expected) -> Path:
    """Writes the case's model, and completes what is expected of it."""
    token, step, example = lone_token(plan, case.n_steps, random.Random(case.seed))
    break_weight(models / f"{case.arch}-{case.layers}", folder, case, token, example)
    expected.steps = (step, step)
    expected.bad_rows = {example.row}
    expected.good_rows = set(plan.rows(step).numbers) - {example.row}
    return folder


def _named(expected: Expected, diagnoses: list[dict[str, Any]], plan: Plan, modules: set[str]) -> list[str]:
    """What is wrong with the first diagnosis."""
    if not diagnoses:
        return ["no incident"]
    found, wrong = diagnoses[0], []
    if found["kind"] != expected.kind:
        wrong.append(f"kind {found['kind']}, not {expected.kind}")
    if expected.module is not None and found["module"] != expected.module:
        wrong.append(f"module {found['module']}, not {expected.module}")
    if found["module"] is not None and found["module"] not in modules:
        wrong.append(f"module {found['module']} is none of the model's")
    if expected.kind in ("backward_overflow", "scale_underflow", "scale_collapse") and found["module"] is None:
        wrong.append("no module")
    first, last = expected.steps
    if not first <= found["step"] <= last:
        wrong.append(f"step {found['step']}, not {first if first == last else f'{first} to {last}'}")
    rows = list(plan.rows(found["step"]).numbers)
    if found["rows"] != rows:
        wrong.append(f"rows {found['rows']}, not {rows}")
    alone = set(found["evidence"].get("rows_alone", []))
    if expected.bad_rows - alone or expected.good_rows & alone:
        wrong.append(f"rows_alone {sorted(alone)}, not {sorted(expected.bad_rows)}")
    # of a forward fault of one row the step itself knew which: no replay was needed
    bad = found["evidence"].get("first_bad_row", "missing")
    if bad == "missing" or (len(expected.bad_rows) == 1 and {bad} != expected.bad_rows):
        wrong.append(f"first_bad_row {bad}, not {sorted(expected.bad_rows)}")
    return wrong


def _stopped(expected: Expected, out: Path, code: int, diagnoses: list[dict[str, Any]]) -> list[str]:
    wrong = [] if code == EXIT_COLLAPSED else [f"exit code {code}"]
    if len(diagnoses) > 1:
        wrong.append(f"{len(diagnoses)} incidents")
    if not list(out.glob("checkpoint-*/adapter_model.safetensors")):
        wrong.append("no checkpoint")
    if diagnoses and not expected.no_remedy and not any(r["verified"] for r in diagnoses[0]["remedies"]):
        wrong.append(f"no verified remedy of {[r['change'] for r in diagnoses[0]['remedies']]}")
    return wrong


def _healed(expected: Expected, out: Path, code: int, diagnoses: list[dict[str, Any]], n_steps: int) -> list[str]:
    if expected.no_remedy:
        return [] if code == EXIT_COLLAPSED else [f"exit code {code}, though {expected.no_remedy}"]
    wrong = [] if code == EXIT_DONE else [f"exit code {code}"]
    for found in diagnoses:
        if found["action"] != "heal":
            wrong.append(f"action {found['action']} at step {found['step']}")
    wrong += [
        f"then {found['kind']} at step {found['step']} in {found['module']}"
        for found in diagnoses[1:]
        if found["kind"] != expected.kind
    ]
    steps = _steps(out)
    last = max(steps, default=0)
    if last != n_steps:
        wrong.append(f"last step {last} of {n_steps}")
    lost = [step for step in sorted(steps)[-3:] if steps[step]["tokens"] and not _is_number(steps[step]["loss"])]
    if lost:
        wrong.append(f"loss not finite at {lost}")
    if not (out / "adapter" / "adapter_model.safetensors").is_file():
        wrong.append("no adapter")
    return wrong


def _healthy(case: Case, out: Path, code: int, printed: str) -> list[str]:
    wrong = [] if code == EXIT_DONE else [f"exit code {code}"]
    wrong += [f"{found['kind']} at step {found['step']} in {found['module']}" for found in _diagnoses(out)]
    wrong += [f"forecast: {line}" for line in printed.splitlines() if FORECAST in line]
    steps = _steps(out)
    if len(steps) != case.n_steps or not all(_is_number(line["loss"]) for line in steps.values()):
        wrong.append(f"{len(steps)} steps of {case.n_steps}, or one without a loss")
    if case.size and not any(line["skipped"] for line in steps.values()):
        wrong.append("the scale was to back off and did not")
    return wrong


def _notes(diagnoses: list[dict[str, Any]]) -> list[str]:
    notes = [f"healed {len(diagnoses)} times"] if len(diagnoses) > 1 else []
    for found in diagnoses[:1]:
        notes += [str(remedy["change"]) for remedy in found["remedies"] if remedy["verified"]][:1]
    return notes


def _diagnoses(out: Path) -> list[dict[str, Any]]:
    """What was written, first one first."""
    paths = sorted(out.glob("incidents/*/diagnosis.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _steps(out: Path) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by step, of each the last that was written."""
    lines = (json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines if "loss" in line}


def _not_finite(out: Path) -> list[str]:
    """Files of checkpoints and adapters with a value that is not; a capsule keeps the state as it was."""
    return [
        str(path.relative_to(out))
        for path in sorted(out.glob("**/*.safetensors"))
        if "incidents" not in path.parts
        and not all(bool(t.isfinite().all()) for t in load_file(path).values() if t.is_floating_point())
    ]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
