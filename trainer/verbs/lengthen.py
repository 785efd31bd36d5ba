"""`lora-train lengthen RUN --max-steps N`: the configuration of a longer run, and what it costs. Trains nothing.

    linear                   W steps of warm-up, then D of decay: the decay keeps its length, and a constant part goes
                             before it (warmup_stable_decay with a linear decay of D steps)
    cosine and others        the peak rate stays, the curve is stretched; the warm-up keeps its steps
    constant, stable, decay  the same from step 0, or from the last checkpoint before the rate falls

Source: the tuning playbook, "Deciding how long to train for when training is compute-bound", round 2.
"""

from __future__ import annotations

import math
import shlex
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...instrument.messages import say
from ..errors import UserError, problem

if TYPE_CHECKING:
    from ..config.schema import Config

CONSTANT = ("constant", "constant_with_warmup")
STABLE = "warmup_stable_decay"
WIDTH, LEVELS = 60, " ▁▂▃▄▅▆▇█"
# Steps below this share of the peak move little: where most of the added ones are, length is not what is missing.
COLD, MOST = 0.1, 0.5


def add_arguments(parser: ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.lengthen.run"))
    parser.add_argument(
        "--max-steps", required=True, type=at_least_one, metavar="N", help=say("cli.lengthen.max_steps")
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=say("cli.lengthen.output"))


def at_least_one(text: str) -> int:
    """A whole number of an argument.

    Raises:
        ArgumentTypeError: it is none, or below 1.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ArgumentTypeError(say("cli.at_least_one", value=text))
    return value


@dataclass(frozen=True)
class Longer:
    """A longer run.

    Attributes:
        settings: of the section training that change.
        before, after: steps.
        now, then: learning rate of each step, of both runs.
        decay_from: step from which the rate of the shorter run falls for good; None where it always does.
    """

    settings: dict[str, Any]
    before: int
    after: int
    now: list[float]
    then: list[float]
    decay_from: int | None

    @property
    def cold(self) -> float:
        """Share of the added steps whose rate is below COLD of the peak."""
        peak = max(self.then)
        below = [sum(rate < COLD * peak for rate in table) for table in (self.now, self.then)]
        return max(0, below[1] - below[0]) / (self.after - self.before)


def run(arguments: Namespace) -> int:
    """Writes the configuration, draws both schedules, and says what each way costs.

    Raises:
        UserError: it is no run of lora-train, is as long already, or the file is there.
    """
    from ...instrument.read.files import write_text
    from ...instrument.read.history import SourceError
    from ...instrument.read.logs import read_history

    folder: Path = arguments.run
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise UserError(problem("lengthen.no_run", folder=folder))
    from ..checks.own_code import without_code
    from ..checks.run_config import run_config

    own = run_config(config_file)
    config = without_code(own)
    try:
        history = read_history(folder)
    except SourceError as error:
        raise UserError(problem(error.key, **error.values)) from error
    before = int(history.planned or history.last_step)
    if arguments.max_steps <= before:
        raise UserError(problem("lengthen.not_longer", asked=arguments.max_steps, steps=before))
    longer = lengthened(config.training, before, arguments.max_steps)
    name = f"{folder.resolve().name}-to-{longer.after}"
    output = arguments.output or folder.resolve().with_name(f"{name}.yaml")
    if output.exists():
        raise UserError(problem("lengthen.exists", output=output))
    values = config.model_dump()
    values["training"] |= longer.settings | {"output_dir": str(folder.with_name(name)), "resume_from_checkpoint": None}
    try:
        write_text(output, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise UserError(problem("import.not_written", output=output, reason=error.strerror or error)) from error
    _, seconds = history.finite("step_seconds")
    per_step = float(sum(seconds) / len(seconds)) if len(seconds) else math.nan
    lines = told(longer, config.training.lr_scheduler_type, folder, output, per_step)
    if left_out := of_code(own):
        from ..config.settings import as_overrides

        lines.append(say("warn.line", text=say("lengthen.code", overrides=" ".join(as_overrides(left_out)))))
    print("\n".join(lines))
    return 0


def of_code(config: Config) -> dict[str, Any]:
    """What of a run's configuration lets code run; the file that is written lies outside of the run."""
    keys = {
        "model.trust_remote_code": config.model.trust_remote_code,
        "training.compute_metrics": config.training.compute_metrics,
    }
    return {key: value for key, value in keys.items() if value}


def lengthened(training: Any, before: int, after: int) -> Longer:
    """The settings of a longer run and both its schedules.

    Args:
        training: the section of the shorter run.
        before, after: steps of both.
    """
    from ..loop.lr_schedule import lr_table, warmup_steps  # imports torch, which takes seconds

    warm_up = warmup_steps(training, before)
    settings: dict[str, Any] = {"max_steps": after, "warmup_steps": warm_up, "warmup_ratio": 0.0}
    kind, decay_from = training.lr_scheduler_type, None
    if kind == "linear":
        decay = {"num_decay_steps": before - warm_up, "decay_type": "linear"}
        settings |= {"lr_scheduler_type": STABLE, "lr_scheduler_kwargs": decay}
    elif kind in CONSTANT:
        decay_from = before
    elif kind == STABLE:
        decay_from = max(0, before - int(training.lr_scheduler_kwargs["num_decay_steps"]))
    if "num_stable_steps" in training.lr_scheduler_kwargs:
        stable = int(training.lr_scheduler_kwargs["num_stable_steps"]) + after - before
        settings["lr_scheduler_kwargs"] = {**training.lr_scheduler_kwargs, "num_stable_steps": stable}
    then = training.model_copy(update=settings)
    return Longer(settings, before, after, lr_table(training, before)[:-1], lr_table(then, after)[:-1], decay_from)


def told(longer: Longer, schedule: str, folder: Path, output: Path, per_step: float) -> list[str]:
    """What was written, both schedules drawn on one axis, and each way with its cost."""
    peak = max(max(longer.now), max(longer.then))
    values = {"run": folder, "before": longer.before, "after": longer.after, "schedule": schedule, "output": output}
    lines = [say("lengthen.head", **values)]
    for key, table in (("lengthen.now", longer.now), ("lengthen.then", longer.then)):
        lines.append(f"  {say(key)}  {drawn(table, longer.after, peak)}")
    lines.append(say("lengthen.axis", after=longer.after, peak=peak))
    if longer.cold > MOST:
        lines.append(say("warn.line", text=say("lengthen.cold", share=100 * longer.cold, limit=100 * COLD)))
    command = f"lora-train --config {shlex.quote(str(output))}"
    lines.append(f"{say('lengthen.from_zero')}  {command}   # {cost(longer.after, per_step)}")
    if longer.decay_from is None:
        return lines
    if checkpoint := last_before(folder, longer.decay_from):
        rest = cost(longer.after - int(checkpoint.name.rpartition("-")[2]), per_step)
        lines.append(f"{say('lengthen.resumed')}  {command} --resume {shlex.quote(str(checkpoint))}   # {rest}")
    else:
        lines.append(say("lengthen.no_checkpoint", step=longer.decay_from))
    return lines


def drawn(table: Sequence[float], whole: int, peak: float) -> str:
    """A rate as a line of blocks over `whole` steps; nothing where the run is over."""
    text = ""
    for column in range(WIDTH):
        at = int((column + 0.5) * whole / WIDTH)
        level = 0 if at >= len(table) or peak == 0 else max(1, round((len(LEVELS) - 1) * table[at] / peak))
        text += LEVELS[level]
    return text.rstrip()


def cost(steps: int, per_step: float) -> str:
    """Steps, and the time they take at the speed of the run."""
    from ...instrument.judge.explain.finding import clock

    if math.isfinite(per_step) and per_step > 0:
        return say("advise.cost_run", steps=steps, time=clock(steps * per_step))
    return say("advise.cost_run_steps", steps=steps)


def last_before(folder: Path, step: int) -> Path | None:
    """The last whole checkpoint of a run at or before a step."""
    from ..loop.checkpoint import checkpoints, step_of
    from ..saved.whole import what_is_torn

    found = [path for path in checkpoints(folder) if step_of(path) <= step and not what_is_torn(path)]
    return found[-1] if found else None
