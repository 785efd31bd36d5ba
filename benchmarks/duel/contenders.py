"""Who reads the logs: lora-train explain, and what a user could install instead, at the settings its pages name.

    lora-train      explain LOG                     wrong and watch are alarms
    losslint        check LOG                       error and warning are alarms; info is printed and not counted
    soup            soup why (utils.why.diagnose)   critical and warning
    traintools      GradientHealthMonitor in the run, each step but the first; without the clipping threshold of its
                    page, which healthy runs pass at most steps
    transformers    DebugUnderflowOverflow in the run: aborts at the first inf or NaN

The last two watch the run itself, which sees more than a log; what they cannot be asked of, a log that is sent by
somebody else, is not held against them here.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_train.instrument.judge.explain import explain, read_history
from transformers import TrainerCallback

from .truth import Named

# what a sentence of ours says, by its key: cause, what is lost, what to do
OURS: dict[str, tuple[str, str, str]] = {
    "explain.zero_rate_frozen": ("forward_nonfinite", "steps", "earlier"),
    "explain.zero_rate_moves": ("forward_nonfinite", "adapter_or_steps", "earlier"),
    "explain.zero_unknown_rate": ("forward_nonfinite", "adapter_or_steps", "earlier"),
    "explain.zero_from_start": ("forward_nonfinite", "everything", "earlier"),
    "explain.zero_other": ("forward_nonfinite", "windows", "look_at_rows"),
    "explain.loss_nan": ("forward_nonfinite", "windows", "look_at_rows"),
    "explain.loss_nan_frozen": ("forward_nonfinite", "steps", "earlier"),
    "explain.loss_nan_moves": ("forward_nonfinite", "adapter_or_steps", "earlier"),
    "explain.loss_nan_unknown": ("forward_nonfinite", "adapter_or_steps", "earlier"),
    "explain.backward": ("backward_nonfinite", "windows", "earlier"),
    "explain.no_gradient": ("no_gradient", "everything", "look_at_gradient"),
    "explain.loss_rose": ("diverged", "since", "lower_rate"),
    "explain.loss_blew_up": ("diverged", "since", "lower_rate"),
    "explain.loss_blew_up_rate": ("diverged", "since", "lower_rate"),
    "explain.loss_beyond": ("diverged", "since", "lower_rate"),
    "explain.loss_turned": ("diverged", "since", "lower_rate"),
    "explain.gradient_never_finite": ("backward_nonfinite", "everything", "earlier"),
    "explain.gradient_none_scale": ("backward_nonfinite", "since", "earlier"),
    "explain.gradient_none_since": ("no_gradient", "since", "earlier"),
    "explain.exploding": ("diverged", "since", "lower_rate"),
    "explain.eval_rose": ("diverged", "since", "lower_rate"),
    "explain.loss_flat": ("not_learning", "everything", "higher_rate"),
    "explain.loss_little": ("not_learning", "everything", "higher_rate"),
    "explain.rate_tiny": ("not_learning", "everything", "higher_rate"),
    "explain.overfitting": ("overfitting", "nothing", "keep_best"),
    "explain.by_heart": ("by_heart", "nothing", "keep_best"),
    "explain.by_heart_sometime": ("by_heart", "nothing", "keep_best"),
    "explain.zero_rounded": ("by_heart", "nothing", "keep_best"),
}


def ours(state: Path) -> Named:
    found = explain(read_history(state))
    alarms = [f for f in found if f.verdict in ("wrong", "watch") and f.topic != "overall"]
    said = [OURS[finding.key] for finding in alarms if finding.key in OURS]
    steps = [finding.values["step"] for finding in alarms if "step" in finding.values]
    steps += [first_number(str(finding.values["steps"])) for finding in alarms if "steps" in finding.values]
    return Named(
        alarms=tuple(f"{finding.key.removeprefix('explain.')}" for finding in alarms),
        causes=frozenset(cause for cause, _, _ in said),
        lost=frozenset(lost for _, lost, _ in said),
        actions=frozenset(action for _, _, action in said),
        steps=frozenset(int(step) for step in steps if step is not None),
    )


def first_number(text: str) -> int | None:
    found = re.search(r"\d+", text.replace(",", ""))
    return int(found.group()) if found else None


# check of losslint: cause; it names no loss and no remedy
LOSSLINT = {
    "divergence": ("diverged",),
    "overfit_onset": ("overfitting",),
    "stagnation": ("not_learning",),
}


def losslint(state: Path) -> Named:
    from losslint.cli import main  # pyright: ignore[reportMissingImports]

    out = state.with_name("losslint.json")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["check", str(state), "--json-out", str(out)])
    findings = json.loads(out.read_text(encoding="utf-8"))["findings"]
    causes: set[str] = set()
    steps: set[int] = set()
    for finding in findings:
        causes.update(LOSSLINT.get(finding["check"], ()))
        if finding["check"] == "nan_inf":
            causes.add("forward_nonfinite" if "'loss'" in finding["message"] else "backward_nonfinite")
            if found := re.search(r"first steps: (\d+)", finding["message"]):
                steps.add(int(found.group(1)))
    alarms = tuple(f["check"] for f in findings if f["severity"] in ("error", "warning"))
    return Named(alarms, frozenset(causes), steps=frozenset(steps))


# category of soup: cause, and what its suggestion asks for
SOUP = {
    "nan_loss": ("forward_nonfinite", "earlier"),
    "loss_flat": ("not_learning", "higher_rate"),
    "loss_diverged": ("diverged", "lower_rate"),
    "grad_norm_high": ("diverged", "lower_rate"),
    "lr_too_low": ("not_learning", "higher_rate"),
    "lr_too_high": ("diverged", "lower_rate"),
}


def soup(state: Path) -> Named:
    from soup_cli.utils.why import diagnose  # pyright: ignore[reportMissingImports]

    log = [entry for entry in json.loads(state.read_text(encoding="utf-8"))["log_history"] if "loss" in entry]
    rate = max((entry.get("learning_rate", 0.0) for entry in log), default=None)
    findings = [f for f in diagnose(log, {"training": {"lr": rate}}) if f.severity != "info"]
    said = [SOUP[finding.category] for finding in findings if finding.category in SOUP]
    steps = [first_number(f.message.rpartition("step")[2]) for f in findings if f.category == "nan_loss"]
    return Named(
        alarms=tuple(finding.category for finding in findings),
        causes=frozenset(cause for cause, _ in said),
        actions=frozenset(action for _, action in said),
        steps=frozenset(step for step in steps if step is not None),
    )


class GradientHealth(TrainerCallback):
    """traintools' monitor where its own page puts it: after backward, before the update."""

    def __init__(self) -> None:
        from traintools import GradientHealthMonitor  # pyright: ignore[reportMissingImports]

        self.monitor, self.warnings = GradientHealthMonitor(), []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        step = state.global_step + 1
        if step == 1:  # B is 0: LoRA's A has no gradient yet, which is no fault
            return
        found = self.monitor.inspect(kwargs["model"], step=step, lr=rate)
        self.warnings += [(step, warning) for warning in found.warnings]

    def named(self) -> Named:
        causes, steps = set(), set()
        for step, warning in self.warnings:
            if "NaN" in warning or "nan" in warning or "finite" in warning:
                causes.add("backward_nonfinite")
                steps.add(step)
            elif "vanish" in warning.lower():
                causes.add("no_gradient")
            elif "explo" in warning.lower() or "large" in warning.lower():
                causes.add("diverged")
        kinds = {re.sub(r"\S*\.\S*|\d+", "#", warning)[:40] for _, warning in self.warnings}
        alarms = tuple(sorted(kinds))
        return Named(alarms, frozenset(causes), steps=frozenset({min(steps)} if steps else ()))


class Underflow(TrainerCallback):
    """transformers' DebugUnderflowOverflow on the model of the run."""

    def __init__(self) -> None:
        self.module: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from transformers.debug_utils import DebugUnderflowOverflow

        self.debug = DebugUnderflowOverflow(kwargs["model"])

    def named(self, error: Exception | None) -> Named:
        if error is None or "inf/nan" not in str(error):
            return Named()
        return Named(
            ("inf/nan detected",), frozenset({"forward_nonfinite"}), steps=frozenset({self.debug.batch_number})
        )


READERS: dict[str, Callable[[Path], Named]] = {"lora-train": ours, "losslint": losslint, "soup": soup}
