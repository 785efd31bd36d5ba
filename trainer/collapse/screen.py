"""The screen of a collapse: where, before, batch, adapter, what the stock Trainer would print, trials, how to go on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len as width

from ...instrument.judge.detect import Diagnosis, Kind
from ...instrument.messages import say
from ...instrument.record.capsule import size_mib
from ..config.settings import as_overrides
from ..console import Console, compact
from ..errors import UserError
from ..loop.components import Components
from ..saved.state import Progress
from .recorded import statistics
from .rehearse import Outcome
from .remedy import OVERFLOWS, Remedy, Trial, listed

# Sentences by the kind of trouble, and of what is not one of these.
TITLES = {
    "forward_overflow": "collapse.title.forward_overflow",
    "backward_overflow": "collapse.title.backward_overflow",
    "bad_weight": "collapse.title.bad_weight",
    "dead_adapter": "collapse.title.dead_adapter",
    "scale_collapse": "collapse.title.scale_collapse",
    "scale_underflow": "collapse.title.scale_underflow",
    "no_supervised_tokens": "collapse.title.no_supervised_tokens",
    "divergence": "collapse.title.divergence",
}
OTHER_TITLE = "collapse.title.other"
WHERE = {
    "no_supervised_tokens": "collapse.where_no_supervised_tokens",
    "not_reproduced": "collapse.where_not_reproduced",
    "divergence": "collapse.where_divergence",
    "scale_underflow": "collapse.where_scale_underflow",
}
LABELS = {
    "where": "collapse.label.where",
    "before": "collapse.label.before",
    "batch": "collapse.label.batch",
    "adapter": "collapse.label.adapter",
    "stock": "collapse.label.stock",
}
# With a checkpoint of the last healthy state, and where none could be written.
ADAPTER = {
    "dead": ("collapse.adapter_dead", "collapse.adapter_dead_unsaved"),
    "healthy": ("collapse.adapter_healthy", "collapse.adapter_healthy_unsaved"),
    "unknown": ("collapse.checkpoint", "collapse.checkpoint_unsaved"),
}
REMEDIES = {
    "loss_scale": "remedy.loss_scale",
    "sdpa": "remedy.sdpa",
    "fp32_module": "remedy.fp32_module",
    "skip_rows": "remedy.skip_rows",
    "rollback": "remedy.rollback",
    "learning_rate": "remedy.learning_rate",
}


@dataclass(frozen=True)
class Facts:
    """What is known when the screen is shown."""

    diagnosis: Diagnosis
    trials: list[Trial]
    chosen: Remedy | None
    unchanged: Outcome | None
    """Of the step with nothing changed."""
    before: Progress
    """Of the checkpoint that was written."""
    checkpoint: Path | None
    folder: Path
    run_dir: Path
    seconds: float
    lost: list[str]
    """What could not be written, in words."""


def show(facts: Facts, components: Components, console: Console) -> None:
    """Prints the screen."""
    diagnosis = facts.diagnosis
    goes_on = diagnosis.action != "stop"
    title = say(TITLES.get(diagnosis.kind, OTHER_TITLE), dtype=components.config.compute_dtype)
    sentence = "collapse.heals" if goes_on else "collapse.stops_lost" if facts.lost else "collapse.stops"
    console.line(say(sentence, step=diagnosis.step, title=title))
    for key, text in _paragraphs(facts, components):
        label = say(LABELS[key])
        console.line("  " + label + " " * max(1, 9 - width(label)) + text)
    for text in facts.lost:
        console.line(text)
    _table(facts, console)
    _way_on(facts, components, console)


def _paragraphs(facts: Facts, components: Components) -> list[tuple[str, str]]:
    diagnosis, evidence = facts.diagnosis, facts.diagnosis.evidence
    found = [("where", _where(diagnosis))]
    if text := _before(facts):
        found.append(("before", text))
    source = components.plan.dataset.source
    alone = evidence.get("rows_alone") or []
    rows = listed(diagnosis.rows)
    if alone and len(diagnosis.rows) > 1:
        found.append(("batch", say("collapse.rows_alone", rows=rows, source=source, alone=listed(alone))))
    else:
        found.append(("batch", say("collapse.rows", rows=rows, source=source)))
    bad, n = evidence.get("adapter_nonfinite"), evidence.get("adapter_values")
    values = {"bad": bad, "n": n, "step": diagnosis.step, "checkpoint": facts.checkpoint and facts.checkpoint.name}
    saved, unsaved = ADAPTER["unknown" if bad is None else "dead" if bad else "healthy"]
    found.append(("adapter", say(saved if facts.checkpoint else unsaved, **values)))
    if facts.unchanged is not None:
        stock = "collapse.stock_skip" if math.isfinite(facts.unchanged.loss) else "collapse.stock_zero"
        found.append(("stock", say(stock)))
    return found


def _where(diagnosis: Diagnosis) -> str:
    evidence = diagnosis.evidence
    values: dict[str, Any] = {"module": diagnosis.module or say("collapse.no_module"), **evidence}
    values |= {key: figure(values[key]) for key in ("input_absmax", "peak") if key in values}
    if diagnosis.kind in (*OVERFLOWS, Kind.BAD_WEIGHT, Kind.DEAD_ADAPTER):
        if "n" not in evidence or not evidence["n"]:
            return values["module"]
        values["bad"] = evidence["n_inf"] + evidence["n_nan"]
        values["what"] = "inf" if not evidence["n_nan"] else "nan" if not evidence["n_inf"] else "inf/nan"
        values["op"] = f" ({evidence['op']})" if "op" in evidence else ""
        side = "collapse.where_forward" if diagnosis.phase != "backward" else "collapse.where_backward"
        return say(side, **values)
    if "growth" in evidence:
        return say("collapse.where_blown_up", **values)
    return say(WHERE[diagnosis.kind], **values)


def figure(value: float) -> str:
    """A magnitude: 61,900, 1.204."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _before(facts: Facts) -> str:
    """The peak of the module's output in the steps before, from what is on disk."""
    module, step = facts.diagnosis.module, facts.diagnosis.step
    if module is None or facts.diagnosis.phase != "forward":
        return ""
    try:
        sites = f"^{re.escape(module)}:out$"
        frame = statistics(facts.run_dir, columns=["absmax"], steps=range(1, step), sites=sites).dropna()
    except UserError:  # a file of an earlier start is damaged: this is no moment to end with that
        return ""
    if len(frame) < 2:
        return ""
    first, last = frame.iloc[max(0, len(frame) // 2)], frame.iloc[-1]
    return say(
        "collapse.before",
        step=step,
        first=figure(float(first["absmax"])),
        first_step=int(first["step"]),
        last=figure(float(last["absmax"])),
        last_step=int(last["step"]),
    )


def _table(facts: Facts, console: Console) -> None:
    if not facts.trials:
        return
    same = facts.unchanged is not None and not facts.unchanged.finite
    console.line(
        say("collapse.trials_same" if same else "collapse.trials", step=facts.diagnosis.step, seconds=facts.seconds)
    )
    lines = []
    for trial in facts.trials:
        what = say(REMEDIES[trial.remedy.kind], **trial.remedy.values)
        gradients = say("collapse.gradients_finite" if trial.outcome.finite else "collapse.no_help")
        if trial.outcome.finite and math.isnan(trial.outcome.loss):
            gradients = say("collapse.step_left_out")
        if trial.outcome.finite and not trial.verified:
            gradients = say("collapse.not_enough")
        mark = say("collapse.recommended") if trial.remedy is facts.chosen else ""
        lines.append((what, f"loss {compact(trial.outcome.loss)}", gradients, mark))
    widest = max(width(line[0]) for line in lines)
    for what, loss, gradients, mark in lines:
        text = f"  {what}{' ' * (widest - width(what))}  {loss:<12}  {gradients}"
        console.line(text + (f"   <- {mark}" if mark else ""))


def _way_on(facts: Facts, components: Components, console: Console) -> None:
    run = facts.run_dir
    command = "lora-train --config " + str(run / "config.yaml")
    if components.config.model.trust_remote_code:
        command += " model.trust_remote_code=true"
    if facts.diagnosis.action != "stop":
        console.line(
            say(
                "collapse.goes_on",
                step=facts.before.step,
                what=say(REMEDIES[facts.chosen.kind], **facts.chosen.values) if facts.chosen else "-",
                number=len(facts.before.heals),
                limit=components.config.precision.max_heals,
            )
        )
    elif facts.chosen is not None:
        overrides = " ".join(f"'{text}'" for text in as_overrides(facts.chosen.settings))
        console.line(
            say("collapse.go_on", command=f"{command} --resume {facts.checkpoint or 'auto'} {overrides}".rstrip())
        )
        if components.config.precision.on_collapse == "stop":
            console.line(say("collapse.sleep", limit=components.config.precision.max_heals))
        else:
            console.line(say("collapse.too_often", limit=components.config.precision.max_heals))
    else:
        console.line(say("collapse.no_remedy"))
    console.line(say("collapse.look", command=f"lora-train replay {run} --step {facts.diagnosis.step}"))
    console.line(say("collapse.look_words", command=f"lora-train explain {run}"))
    if facts.folder.is_dir():
        console.line(say("collapse.saved", folder=facts.folder, size=size_mib(facts.folder)))
    if facts.diagnosis.action == "stop":
        console.line(say("collapse.exit_code"))
