"""Turns device rows and host facts into metrics.jsonl lines, console lines and the time that is left."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ...instrument.constants import GIB
from ...instrument.judge.detect import PATIENCE, Detectors, Trouble
from ...instrument.messages import say
from ...instrument.read.schema import StepLine, Summary, kind_of
from ...instrument.read.store import METRICS, MetricsLog, read_metrics
from ...instrument.record.recorder import Recorder
from ...instrument.record.ring import Ring
from ..checks.first_steps import FirstSteps
from ..console import Console, compact, duration
from ..data.batches import StepRows
from ..log.layer_series import LayerSeries
from ..log.streams import Streams, write_failed
from ..log.trackers import Trackers
from ..saved.state import Progress
from .components import Components
from .evaluate import Evaluation, ScoredEvaluation, line_of

# What train_step puts in a row, in this order; float64 on the device.
ROW_FIELDS = ("loss", "grad_norm", "loss_scale", "skipped", "nonfinite_micro_batches", "updates", "latched")
# Steps whose mean time the ETA is based on.
RATE_WINDOW = 50


@dataclass(frozen=True)
class StepFacts:
    """What the host knows of a step without asking the device, over all processes."""

    step: int
    tokens: int
    supervised_tokens: int
    supervised_tokens_squared: int
    max_sequence_length: int
    step_seconds: float
    rows: StepRows


class RunLog:
    """Writes every step to metrics.jsonl and every logging_steps-th to the console.

    Attributes:
        last_step: the last step that was recorded.
    """

    def __init__(
        self,
        metrics: MetricsLog | None,
        console: Console,
        components: Components,
        progress: Progress,
        streams: Streams | None = None,
        trackers: Trackers | None = None,
    ):
        self._metrics, self._console, self._progress = metrics, console, progress
        self._config, self._n_steps, self._steps_per_epoch = (
            components.config,
            components.n_steps,
            components.plan.steps_per_epoch,
        )
        self._rates, self._device = components.optimizer.rates, components.engine.device
        self._streams = streams or Streams(components.config, console, None, None)
        self._trackers = trackers
        self._scale_is_dynamic = components.config.training.fp16 and isinstance(
            components.config.precision.loss_scale, str
        )
        self._detectors = Detectors(
            components.recorder.sites if components.recorder else [], components.config.training.fp16
        )
        self._schedule = components.schedule
        self._first_steps = FirstSteps(components.config.training.max_grad_norm, components.n_steps)
        self._pending: dict[int, StepFacts] = {}
        self._recent: deque[float] = deque(maxlen=RATE_WINDOW)
        # a resumed run begins with what they cost before
        self._eval_seconds = progress.eval_seconds_total / max(1, len(progress.evaluations))
        self._save_seconds = progress.save_seconds_total / max(1, progress.step // components.schedule.save_every)
        self._lines_lost = self._zero_gradients = 0
        # where another process writes them: it may be lost between the end of a step and its lines, step and evaluation
        self._unwritten: deque[dict] = deque(maxlen=2)
        self._layers = LayerSeries(components.recorder.sites) if components.recorder and trackers else None
        # lines for the trackers that wait for the statistics of their step: some trackers take a step only once
        self._untracked: dict[int, dict] = {}
        self.last_step = progress.step

    def expect(self, facts: StepFacts) -> None:
        """Keeps a step's host facts until its row arrives."""
        self._pending[facts.step] = facts
        self._streams.expect(facts.rows)
        self._recent.append(facts.step_seconds)
        self._progress.train_seconds += facts.step_seconds

    def receive(self, ring: Ring, recorder: Recorder | None, drain: bool) -> Trouble | None:
        """Records what has arrived of the steps, or with `drain` all of them.

        Returns:
            the first step that went wrong. What the device did after a step that it latched was masked, and is not
            recorded; after any other trouble everything that is on its way is.
        """
        trouble = None
        for step, values in ring.drain() if drain else ring.ready():
            trouble = self.step(step, values.tolist())
            if trouble is not None:
                break
        latched = trouble is not None and trouble.latched
        trouble = (
            self._statistics(recorder, drain or trouble is not None, self.last_step if latched else None) or trouble
        )
        if trouble is not None:
            for step, values in ring.drain():
                if not trouble.latched:
                    self.step(step, values.tolist())
            self._pending.clear()
            return self._streams.with_bad_rows(trouble)
        return None

    def step(self, step: int, values: list[float]) -> Trouble | None:
        """Records a step whose row has arrived; what is wrong with it, if anything is."""
        facts, self.last_step = self._pending.pop(step), step
        rows = facts.rows.numbers
        row = dict(zip(ROW_FIELDS, values, strict=True))
        skipped = bool(row["skipped"])
        self._progress.skipped += skipped
        updates = int(row["updates"])
        record = StepLine(
            step=step,
            updates=updates,
            epoch=step / self._steps_per_epoch,
            loss=row["loss"],
            learning_rate=self._rates[updates - (not skipped)],
            grad_norm=row["grad_norm"],
            loss_scale=row["loss_scale"],
            skipped=skipped,
            nonfinite_micro_batches=int(row["nonfinite_micro_batches"]),
            tokens=facts.tokens,
            supervised_tokens=facts.supervised_tokens,
            supervised_tokens_squared=facts.supervised_tokens_squared,
            tokens_per_second=facts.tokens / facts.step_seconds,
            step_seconds=facts.step_seconds,
            max_sequence_length=facts.max_sequence_length,
            **self._memory(),
            eval_seconds_total=self._progress.eval_seconds_total,
            save_seconds_total=self._progress.save_seconds_total,
        )
        line = dict(vars(record))
        latched = bool(row["latched"])
        if not math.isfinite(row["loss"]) and rows:
            line["rows"] = rows
            if not latched:
                self._console.warn(say("step.nonfinite", step=step, rows=", ".join(map(str, rows))))
        elif skipped and rows and not self._scale_is_dynamic and not latched:
            line["rows"] = rows
            self._console.warn(say("step.nonfinite_gradient", step=step, rows=", ".join(map(str, rows))))
        self._zero_gradients = self._zero_gradients + 1 if row["grad_norm"] == 0 else 0
        if self._zero_gradients == PATIENCE:
            self._console.warn(say("step.no_gradient", step=step - PATIENCE + 1, n=PATIENCE))
        self._progress.final_loss = row["loss"] if math.isfinite(row["loss"]) else None
        self._write(line, ends=latched)
        if latched:
            return replace(self._detectors.before_overflow(step) or Trouble(step), latched=True)
        self._show(line)
        if not self._first_steps.over:
            for text in self._first_steps.step(step, row["grad_norm"], self.seconds_left(step)):
                self._console.line(text)
        return self._detectors.step(step, row["loss"])

    def _statistics(self, recorder: Recorder | None, drain: bool, last: int | None) -> Trouble | None:
        """Writes the statistics that have arrived, with `drain` all of them; those after step `last` are dropped."""
        trouble = None
        if recorder is None:
            return None
        # never ahead of the scalars: they say whether a step was masked
        for step, rows, exponents in recorder.drain() if drain else recorder.ready(self.last_step):
            if last is not None and step > last:
                continue
            self._streams.write_statistics(step, rows, exponents, ends=last is not None)
            self._track(step, rows)
            found, coming = self._detectors.rows(step, rows.numpy())
            trouble = trouble or found
            for site, forecast in coming:
                self._console.warn(
                    say(
                        "warn.forecast",
                        module=site.module,
                        peak=forecast.peak,
                        limit=forecast.limit,
                        rate=forecast.per_step,
                        step=forecast.predicted_step,
                    )
                )
        self._streams.receive_rows(recorder.rows, self.last_step, drain, last)
        return trouble if last is None else None

    def _track(self, step: int, rows: torch.Tensor | None) -> None:
        """Sends the trackers what waits up to that step, with the layers of this one."""
        for waiting in sorted(at for at in self._untracked if at <= step):
            line = self._untracked.pop(waiting)
            layers = {}
            if self._layers and rows is not None and waiting == step:
                layers = self._layers.values(rows.numpy(), line["loss_scale"])
            if self._trackers:
                self._trackers.log({**line, **layers}, waiting)

    def _write(self, line: dict, ends: bool = False) -> None:
        """One line of metrics.jsonl; training.on_write_error decides what a full disk means, unless the run `ends`."""
        if self._metrics is None:
            self._unwritten.append(line)
            return
        try:
            self._metrics.write(line)
        except OSError as error:
            if not ends:
                write_failed(self._config, METRICS, error)
            if not self._lines_lost:
                self._console.warn(say("log.failed", step=self.last_step, what=error))
            self._lines_lost += 1

    def write_for_lost(self, run_dir: Path) -> None:
        """Writes the lines of the last step that the main process had no time to write, where that one is lost."""
        if self._metrics is not None:
            return
        start = self._progress.start
        try:
            self._metrics = MetricsLog(run_dir, start)
            written = {(kind_of(row), row.get("step")) for row in read_metrics(run_dir, start)}
        except OSError as error:
            self._console.warn(say("log.failed", step=self.last_step, what=error))
            return
        for line in self._unwritten:
            if (kind_of(line), line["step"]) not in written:
                self._write(line, ends=True)

    def close(self) -> None:
        """Ends the streams, whole where the disk allows it."""
        for stream in (self._metrics, *self._streams.open()):
            try:
                if stream is not None:
                    stream.close()
            except OSError as error:
                self._console.warn(say("log.failed", step=self.last_step, what=error))
        self._track(self.last_step, None)
        if self._trackers:
            self._trackers.finish()

    def evaluation(self, step: int, evaluation: Evaluation | ScoredEvaluation) -> None:
        """Records an evaluation."""
        line, seconds = line_of(evaluation), evaluation.eval_runtime
        self._eval_seconds = seconds
        self._progress.eval_seconds_total += seconds
        self._write({"step": step, **line})
        self._track(step, None)
        if self._trackers:
            self._trackers.log(line, step)
        values = {"step": step, "total": self._n_steps, "loss": compact(evaluation.eval_loss), "seconds": seconds}
        if isinstance(evaluation, Evaluation):
            self._console.line(say("eval.line", accuracy=100 * evaluation.eval_token_accuracy, **values))
            return
        shown = ("accuracy", "f1", "auroc", "mse", "pearson", "spearman")
        found = {name: line[f"eval_{name}"] for name in shown if f"eval_{name}" in line}
        scores = "  ".join(f"{name} {compact(value)}" for name, value in found.items())
        self._console.line(say("eval.scores", scores=scores, **values))

    def seconds_to_stop(self) -> float:
        """What one more step, an evaluation and a checkpoint would take, with a margin."""
        return 2 * (self._save_seconds + (self._recent[-1] if self._recent else 0.0)) + self._eval_seconds

    def saved(self, seconds: float) -> None:
        """Counts the time a checkpoint took."""
        self._save_seconds = seconds
        self._progress.save_seconds_total += seconds

    def summary(self, n_rows: int, n_steps: int) -> None:
        """Writes the last line of a run: seconds spent in steps over all starts, and the rates."""
        seconds = max(self._progress.train_seconds, 1e-9)
        rates = {"train_samples_per_second": n_rows / seconds, "train_steps_per_second": n_steps / seconds}
        self._write(vars(Summary(train_runtime=seconds, **rates)))

    def seconds_left(self, step: int) -> float:
        """Steps at their recent rate, evaluations and checkpoints at their last cost."""
        when = self._schedule
        rate = sum(self._recent) / max(len(self._recent), 1)
        evaluating = when.left(when.eval_every, step) * self._eval_seconds
        saving = when.left(when.save_every, step) * self._save_seconds
        return (self._n_steps - step) * rate + evaluating + saving

    def _show(self, line: dict) -> None:
        step, total = line["step"], self._n_steps
        if not line["tokens"]:
            self._console.line(say("step.left_out", step=step, width=len(str(total)), total=total))
            return
        eta = duration(self.seconds_left(step))
        self._console.advance(step, f"loss {compact(line['loss'])}  eta {eta}")
        if not self._schedule.logs(step):
            return
        if self._trackers:
            self._untracked[step] = line
            if self._layers is None:
                self._track(step, None)
        self._console.line(
            say(
                "step.line",
                step=step,
                width=len(str(total)),
                total=total,
                loss=compact(line["loss"]),
                grad_norm=compact(line["grad_norm"]),
                lr=compact(line["learning_rate"]),
                scale=f"{line['loss_scale']:g}",
                skipped=self._progress.skipped,
                rate=line["tokens_per_second"],
                memory=line["memory_reserved_gib"] or line["host_memory_gib"],
                eta=eta,
            )
        )

    def _memory(self) -> dict[str, Any]:
        """GiB in use: of the GPU (null on the CPU) and of this process on the host."""
        cuda = self._device.type == "cuda"
        return {
            "memory_allocated_gib": torch.cuda.memory_allocated(self._device) / GIB if cuda else None,
            "memory_reserved_gib": torch.cuda.memory_reserved(self._device) / GIB if cuda else None,
            "host_memory_gib": psutil.Process().memory_info().rss / GIB,
        }
