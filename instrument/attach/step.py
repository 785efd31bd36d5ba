"""A step of a loop that is not ours, as it is told of: its micro-batches, what their losses weigh, and its result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...kernels.statistics.tensor_stats import FIELDS
from ..judge.detect import Trouble
from ..messages import say
from ..record.recorder import Recorder

_SUMSQ, _N_NAN, _N_INF = (FIELDS.index(name) for name in ("sumsq", "n_nan", "n_inf"))


class Recording(Protocol):
    """What a step needs of the instrument."""

    recorder: Recorder
    n_micro_batches: int
    is_last: Callable[[], bool]

    def gradient_rows(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class MicroBatch:
    """One that was told of.

    Attributes:
        passes: the model's arguments in each of its forward passes, as far as they are known.
        bad: bool [] on the device, whether its loss is not finite.
        n_tokens, n_supervised: numbers, or tensors [] on the device; None: the model was not given ids, or labels.
        longest: tokens of the longest row, padding counted; None without ids.
    """

    passes: tuple[Mapping[str, Any], ...]
    bad: torch.Tensor
    n_tokens: Any
    n_supervised: Any
    longest: int | None


@dataclass(frozen=True)
class StepResult:
    """What a step was, after its last backward pass and before anything is applied; plain numbers.

    Attributes:
        number: from 1.
        loss: of the whole step, as the optimizer sees it; NaN where that of a micro-batch is not finite.
        grad_norm: of the unscaled gradients; NaN where one is not finite.
        finite: whether losses and gradients are.
        n_bad: micro-batches whose loss is not finite.
        tokens, supervised_tokens: of all micro-batches; None where the model was not given ids, or labels.
        longest: tokens of the longest row; None likewise.
        seconds: since the step began.
        micro_batches: in the order in which they were told.
    """

    number: int
    learning_rate: float | None
    loss_scale: float
    epoch: float | None
    loss: float
    grad_norm: float
    finite: bool
    n_bad: int
    tokens: int | None
    supervised_tokens: int | None
    longest: int | None
    seconds: float
    micro_batches: tuple[MicroBatch, ...]


@dataclass
class Step:
    """A step in the making.

    Attributes:
        number: from 1.
        loss: of the whole step, as the optimizer sees it; known when the step's `with` ends.
        finite: whether loss and gradients are; known then.
        trouble: what is wrong with the step, or with the run as this step shows; known then.
    """

    number: int
    learning_rate: float | None
    loss_scale: float
    epoch: float | None
    _instrument: Recording
    loss: float = math.nan
    finite: bool = True
    trouble: Trouble | None = None
    _weighted: list[torch.Tensor] = field(default_factory=list)
    _micro_batches: list[MicroBatch] = field(default_factory=list)
    _rows: torch.Tensor | None = None
    _begun: bool = False
    _started: float = field(default_factory=time.perf_counter)

    def begin_micro_batch(self) -> None:
        """To be called before the forward pass; again before a second one of the same micro-batch changes nothing."""
        if not self._begun and len(self._micro_batches) < self._instrument.n_micro_batches:
            self._instrument.recorder.begin_micro_batch()
        self._begun = True

    def micro_batch(
        self, loss: torch.Tensor, inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Tells of a micro-batch, between its forward and its backward pass.

        Args:
            loss: float [], what the model gave; what it weighs in the step is read from its gradient.
            inputs: the model's arguments, kept until the step's end to name the module if it goes wrong; those of each
                pass where the loss takes several.

        Raises:
            ValueError: `begin_micro_batch` was not called before the forward pass.
        """
        if not self._begun:
            raise ValueError(say("attach.not_begun"))
        self._begun = False
        value = loss.detach().float()
        passes = (inputs,) if isinstance(inputs, Mapping) else tuple(inputs or ())
        self._micro_batches.append(MicroBatch(passes, ~torch.isfinite(value), *_counts(passes)))

        def weigh(grad: torch.Tensor) -> None:
            self._weighted.append(value * grad.detach().float())
            # after the last gradient of this backward pass has been accumulated
            torch.autograd.Variable._execution_engine.queue_callback(self._accumulated)

        if loss.requires_grad:
            loss.register_hook(weigh)

    def _accumulated(self) -> None:
        self._rows = self._instrument.gradient_rows() if self._instrument.is_last() else None

    def gradient_rows(self) -> torch.Tensor:
        """Statistics of the gradients as the last backward pass left them, float64 [parameters, 9]."""
        return self._instrument.gradient_rows() if self._rows is None else self._rows

    def result(self, rows: torch.Tensor) -> StepResult:
        """Ends the step; waits for the device once.

        Args:
            rows: what `gradient_rows` gave.
        """
        told = self._micro_batches
        weighted = _total(self._weighted, rows) if self._weighted else rows.new_full((), math.nan)
        norm, bad_values = rows[:, _SUMSQ].sum().sqrt(), (rows[:, _N_NAN] + rows[:, _N_INF]).sum()
        counts = [_total([m.n_tokens for m in told], rows), _total([m.n_supervised for m in told], rows)]
        facts = torch.stack([weighted, _total([m.bad for m in told], rows), norm, bad_values, *counts])
        loss, n_bad, grad_norm, n_bad_values, tokens, supervised = facts.tolist()  # the step's one wait
        self.loss = math.nan if n_bad else loss / self.loss_scale
        self.finite = not n_bad and not n_bad_values
        return StepResult(
            number=self.number,
            learning_rate=self.learning_rate,
            loss_scale=self.loss_scale,
            epoch=self.epoch,
            loss=self.loss,
            grad_norm=math.nan if n_bad_values else grad_norm / self.loss_scale,
            finite=self.finite,
            n_bad=int(n_bad),
            tokens=int(tokens) if any(m.n_tokens is not None for m in told) else None,
            supervised_tokens=int(supervised) if any(m.n_supervised is not None for m in told) else None,
            longest=max((m.longest for m in told if m.longest is not None), default=None),
            seconds=time.perf_counter() - self._started,
            micro_batches=tuple(told),
        )


def _counts(passes: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, int | None]:
    """Tokens, supervised tokens and the longest row of a micro-batch, the first two on the device."""
    tokens = supervised = longest = None
    for inputs in passes:
        ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
        if isinstance(ids, torch.Tensor):
            here = mask.sum() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else ids.numel()
            tokens = here if tokens is None else tokens + here
            longest = max(longest or 0, ids.shape[-1])
            if isinstance(labels, torch.Tensor):
                known = ((labels[..., 1:] if labels.ndim > 1 else labels) >= 0).sum()
                supervised = known if supervised is None else supervised + known
    return tokens, supervised, longest


def _total(values: Sequence[Any], like: torch.Tensor) -> torch.Tensor:
    """Sum of numbers and of tensors [], float64 [] where `like` is; None counts nothing."""
    tensors = [value.to(like.device).double() for value in values if isinstance(value, torch.Tensor)]
    known = float(sum(value or 0 for value in values if not isinstance(value, torch.Tensor)))
    return torch.stack(tensors).sum() + known if tensors else like.new_full((), known)
