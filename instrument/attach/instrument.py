"""The same instrument inside a loop that is not ours.

    with Instrument(model, "runs/x") as instrument:
        for inputs in loader:
            with instrument.step(learning_rate=rate) as step:
                step.begin_micro_batch()              # before the forward pass, for each micro-batch
                loss = model(**inputs).loss
                step.micro_batch(loss, inputs)        # before the backward pass
                loss.backward()
            if not step.finite: ...                   # before the optimizer moves anything
            optimizer.step()

Writes the run folder that lora-train writes: metrics.jsonl, sites.json, stats/, incidents/. Loss and gradients are
read before anything filters, clips or unscales them. What the loop decides stays with the loop: no row numbers are
known, nothing is skipped on the device, and looking whether a step is finite makes the host wait once a step.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ...kernels.backend import is_gpu
from ...kernels.statistics.tensor_stats import exponent_histogram, tensor_stats
from ..constants import GIB
from ..judge.detect import Detectors, Diagnosis, Kind, Trouble
from ..judge.wording import OTHER_TROUBLE, TROUBLES
from ..messages import say
from ..read.logs.marks import loss_falls
from ..read.schema import StepLine, Summary
from ..read.store import SCHEMA_VERSION, Site
from ..record.hooks.hook import Guard
from ..record.hooks.layers import other_layers
from ..record.latch import MAX_SKIPS
from ..record.once import Tried, in_mode
from ..record.once import run_once as four_tokens
from ..record.patch import Patched, on_hooks, patch, unpatch
from ..record.recorder import Recorder
from ..record.sites import Watching
from ..record.trace import Tracer, bad_weights
from .files import RunFiles
from .gradients import dense_gradients, gradient_rows
from .step import Step, StepResult
from .trained import Trained, trains

# A loop that goes on after a collapse shows nothing new afterwards.
MAX_DIAGNOSES = 5


@dataclass(frozen=True)
class Options:
    """What the loop said of itself, as in `Instrument`."""

    fuse: bool
    fp16: bool
    stops: bool


@dataclass(frozen=True)
class Blame:
    """What was wrong with a step, as in `Diagnosis`."""

    kind: Kind
    phase: str
    module: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


class Instrument:
    """Records a model in training.

    Attributes:
        run_dir: where it writes.
        recorder: the statistics on their way.
    """

    def __init__(
        self,
        model: nn.Module,
        run_dir: str | Path,
        *,
        fuse: bool = False,
        sites: Sequence[str] = ("*",),
        fp16: bool = False,
        gradient_accumulation_steps: int = 1,
        histogram_every: int = 100,
        probe_every: int = 100,
        stops: bool = True,
        n_steps: int = 0,
        run_once: Callable[[], Any] | None = None,
        is_last: Callable[[], bool] = lambda: True,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        warn: Callable[[str], None] = print,
    ):
        """
        Args:
            model: with PEFT's LoRA layers, another adapter, or none: what is trained is recorded.
            run_dir: a new folder; if it holds a run, `<run_dir>-2` and so on is taken.
            fuse: compute the LoRA linears with the fused kernels as well.
            sites: shell patterns over `<module>:<tensor>`, as instrument.sites of a configuration.
            fp16: whether a loss scale is at work.
            gradient_accumulation_steps: the most micro-batches of a step.
            histogram_every, probe_every: as instrument.* of a configuration.
            stops: whether the loop ends on the step that collapses; for what is said of it.
            n_steps: steps that were run before, where a run is resumed.
            run_once: a forward pass on a few tokens, under the autocast of the loop; None for four tokens without. If
                it fails, layers stand in the order of the model's definition and the others are not looked at.
            is_last: whether, after a backward pass, the gradients are those of the whole step: where they are read.
            settings: {section: {key: value}} for the report; `attached`, of `kind_of`, tells whether a loss that rises
                is a collapse, which that of reinforcement learning is not.
            warn: takes a sentence for the user.
        """
        self._model, self._warn, self._trained = model, warn, Trained(model)
        self._options, self.is_last = Options(fuse, fp16, stops), is_last
        self._device = device = self._trained.device()
        once = Tried(run_once or (lambda: four_tokens(model, device)), warn)
        self._patched: Patched = patch(model, once) if fuse else on_hooks(model, once)
        self.n_micro_batches = gradient_accumulation_steps
        watching = Watching(
            self.n_micro_batches, histogram_every, probe_every, model=model, patterns=sites, guarded=Guard(warn).around
        )
        try:
            self._patched = replace(self._patched, others=other_layers(model, self._patched, once))
            with in_mode(model, training=False):
                self.recorder = Recorder(self._patched, self._trained.parameters, once, device, watching)
            _compile_ahead(self.recorder.sites, device)
            self._files = RunFiles(Path(run_dir), self.recorder.sites, self._facts(settings or {}), warn)
        except BaseException:
            unpatch(self._patched)
            raise
        self.run_dir = self._files.folder
        self._detectors = Detectors(self.recorder.sites, fp16, self._loss_falls(settings or {}))
        self._n_steps = self._updates = n_steps
        self._skips = self._n_diagnosed = self._eval_seconds = 0
        self._stack, self._said_changed, self._last = contextlib.ExitStack(), False, {}

    @staticmethod
    def _loss_falls(settings: Mapping[str, Mapping[str, Any]]) -> bool:
        attached = settings.get("attached")
        return not attached or loss_falls(attached["to"], "own_loss" in attached)

    def _facts(self, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        versions = {name: importlib.metadata.version(name) for name in ("lora-vitals", "torch", "transformers", "peft")}
        env = {"schema_version": SCHEMA_VERSION, "started": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        env |= {"versions": versions, "device": str(self._device), "attached": True, "trains": trains(self._model)}
        config = yaml.safe_dump({section: dict(values) for section, values in settings.items()})
        return {"config.yaml": config, "env.json": json.dumps(env, indent=1) + "\n"}

    def __enter__(self) -> Instrument:
        self._stack.enter_context(self.recorder.active())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the hooks off the model, writes what is on its way and ends the files; a second time nothing."""
        self._stack.close()
        unpatch(self._patched)
        for step, rows, exponents in self.recorder.drain():
            self._files.statistics(step, rows, exponents)
        self._files.close()

    @contextlib.contextmanager
    def step(self, learning_rate: float | None = None, loss_scale: float = 1.0) -> Iterator[Step]:
        """One optimizer step: its forward and backward passes happen inside."""
        step = self.begin_step(learning_rate, loss_scale)
        yield step
        self.end_step(step)

    def begin_step(
        self, learning_rate: float | None = None, loss_scale: float = 1.0, epoch: float | None = None
    ) -> Step:
        """Begins a step; `end_step` must follow."""
        self._n_steps += 1
        if self._trained.changed():
            self._pair_again()
        self.recorder.begin_step(self._n_steps)
        return Step(self._n_steps, learning_rate, loss_scale, epoch, self)

    def _pair_again(self) -> None:
        have_sites = self.recorder.pair_gradients(self._trained.parameters)
        if not have_sites and not self._said_changed:
            self._said_changed = True
            self._warn(say("attach.trained_changed", step=self._n_steps))

    def gradient_rows(self) -> torch.Tensor:
        """Statistics of the accumulated gradients as they are in memory, float64 [parameters, 9]."""
        return gradient_rows(self._trained.parameters, self._device)

    def end_step(self, step: Step) -> Trouble | None:
        """Records a step after its last backward pass and before anything is applied; waits for the device once.

        Returns:
            what is wrong, if anything is; then incidents/ has a diagnosis.
        """
        rows = step.gradient_rows()
        self.recorder.finish_step(
            rows, dense_gradients(self._trained.parameters) if self.recorder.counts_exponents else ()
        )
        result = step.result(rows)
        self._skips = 0 if result.finite else self._skips + 1
        self._updates += result.finite
        self._last = vars(self._line(result))
        self._files.line(self._last)
        trouble = self._statistics() or self._detectors.step(result.number, result.loss)
        stuck = not result.finite and (not self._options.fp16 or self._skips >= MAX_SKIPS)
        if result.n_bad or stuck:
            trouble = self._detectors.before_overflow(result.number) or Trouble(result.number)
        if trouble is not None:
            step.trouble = self._diagnosed(result, trouble)
        return step.trouble

    def _line(self, result: StepResult) -> StepLine:
        cuda = self._device.type == "cuda"
        return StepLine(
            step=result.number,
            updates=self._updates,
            epoch=result.epoch,
            loss=result.loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            loss_scale=result.loss_scale,
            skipped=not result.finite and self._options.fp16,
            nonfinite_micro_batches=result.n_bad,
            tokens=result.tokens,
            supervised_tokens=result.supervised_tokens,
            supervised_tokens_squared=None,
            tokens_per_second=None if result.tokens is None else result.tokens / result.seconds,
            step_seconds=result.seconds,
            max_sequence_length=result.longest,
            memory_allocated_gib=torch.cuda.memory_allocated() / GIB if cuda else None,
            memory_reserved_gib=torch.cuda.memory_reserved() / GIB if cuda else None,
            host_memory_gib=_host_memory(),
            eval_seconds_total=self._eval_seconds,
            save_seconds_total=None,
        )

    def logged(self, values: Mapping[str, float]) -> None:
        """Writes the last step's line again, with what the loop measured besides, under the loop's names."""
        if values and self._last:
            self._files.line({**values, **self._last})

    def evaluation(self, values: Mapping[str, float]) -> None:
        """Records an evaluation under the names of metrics.jsonl: eval_loss, where there is one, eval_accuracy."""
        self._eval_seconds += float(values.get("eval_runtime", 0.0))
        self._files.line({"step": self._n_steps, **values})

    def finished(self, seconds: float) -> None:
        """Records that the run came to its end."""
        rate = self._n_steps / max(seconds, 1e-9)
        line = Summary(train_runtime=seconds, train_samples_per_second=None, train_steps_per_second=rate)
        self._files.line(vars(line))

    def _statistics(self) -> Trouble | None:
        trouble = None
        for step, rows, exponents in self.recorder.ready():
            self._files.statistics(step, rows, exponents)
            found, coming = self._detectors.rows(step, rows.numpy())
            trouble = trouble or found
            for site, forecast in coming:
                values = {"peak": forecast.peak, "limit": forecast.limit, "rate": forecast.per_step}
                self._warn(say("warn.forecast", module=site.module, step=forecast.predicted_step, **values))
        return trouble

    def _diagnosed(self, result: StepResult, trouble: Trouble) -> Trouble:
        """Names kind and module, writes diagnosis.json and says it."""
        self._n_diagnosed += 1
        if self._n_diagnosed > MAX_DIAGNOSES:
            return trouble
        if trouble.kind is None:
            blame = self._blame(result)
        else:
            blame = Blame(trouble.kind, "optimizer", trouble.module, dict(trouble.evidence))
        kind, module, evidence = blame.kind, blame.module, blame.evidence
        action = "stop" if self._options.stops else "none"
        diagnosis = Diagnosis(kind, trouble.step, module, blame.phase, [], evidence, action=action)
        self._files.diagnosis(trouble.step, diagnosis.as_json())
        words, run = say(TROUBLES.get(kind, OTHER_TROUBLE)), shlex.quote(str(self.run_dir))
        self._warn(say("attach.trouble", step=trouble.step, trouble=words, module=module or "-", run=run))
        return Trouble(trouble.step, kind, module, evidence)

    def _blame(self, result: StepResult) -> Blame:
        """The module that turned finite inputs into something else: the forward passes again, with hooks on all."""
        dead = next((name for name, module in self._layers() if bad_weights(module) == "lora"), None)
        if dead is not None:
            return Blame(Kind.DEAD_ADAPTER, "optimizer", dead)
        dtype = torch.float16 if self._options.fp16 else torch.float32
        for micro_batch in result.micro_batches:
            if not micro_batch.passes or not bool(micro_batch.bad):
                continue
            tracer = Tracer(self._model, self._patched.groups, dtype)
            # a model of somebody else's may not run again, outside of their loop: then no module is named
            with contextlib.suppress(Exception), torch.no_grad(), self._quiet(), tracer.active():
                for inputs in micro_batch.passes:
                    self._model(**inputs)
            origin = tracer.origin("forward", None)
            if origin is not None:
                sides = origin.trace.sides
                evidence = {"n": sides["out"].n, "n_inf": sides["out"].n_inf, "n_nan": sides["out"].n_nan}
                evidence |= {"input_absmax": sides["in"].absmax, "absmax": sides["out"].absmax}
                kind = Kind.BAD_WEIGHT if origin.weights == "base" else Kind.FORWARD_OVERFLOW
                return Blame(kind, "forward", origin.trace.name, evidence)
        if result.supervised_tokens == 0 and all(m.n_supervised is not None for m in result.micro_batches):
            return Blame(Kind.NO_SUPERVISED_TOKENS, "data")
        return Blame(Kind.FORWARD_OVERFLOW, "forward") if result.n_bad else Blame(Kind.BACKWARD_OVERFLOW, "backward")

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        for group in self._patched.groups:
            yield from zip(group.names, group.modules, strict=True)
        yield from ((name, module) for name, module, _ in self._patched.unfused)
        yield from ((layer.name, layer.module) for layer in self._patched.others if layer.parameters)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Nothing is recorded of what runs meanwhile."""
        self._stack.close()
        try:
            yield
        finally:
            self._stack.enter_context(self.recorder.active())


def _host_memory() -> float:
    import psutil

    return psutil.Process().memory_info().rss / GIB


def _compile_ahead(sites: Sequence[Site], device: torch.device) -> None:
    """Compiles what histograms and probes launch: the step that is the first to take one would wait for it."""
    if not is_gpu(device):
        return
    for dtype in {torch.float32, *(getattr(torch, site.dtype) for site in sites if hasattr(torch, site.dtype))}:
        for width in (16, 3):  # kernels know whether 16 divides the width
            values = torch.zeros(2, width, dtype=dtype, device=device)
            exponent_histogram(values)
            for full in (False, True):
                tensor_stats(values, full=full)
