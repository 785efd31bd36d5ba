"""A step of a loop that is not ours, as it is told of: its micro-batches, and what their losses weigh."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..judge.detect import Trouble
from ..messages import say
from ..record.recorder import Recorder


class Recording(Protocol):
    """What a step needs of the instrument."""

    recorder: Recorder
    n_micro_batches: int

    def gradient_rows(self) -> torch.Tensor: ...


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
    _bad: list[torch.Tensor] = field(default_factory=list)
    _inputs: list[Mapping[str, Any]] = field(default_factory=list)
    _counts: list[tuple[Any, Any, int]] = field(default_factory=list)
    _rows: torch.Tensor | None = None
    _begun: bool = False
    _started: float = field(default_factory=time.perf_counter)

    def begin_micro_batch(self) -> None:
        """To be called before the forward pass; again before a second one of the same micro-batch changes nothing."""
        if not self._begun and len(self._bad) < self._instrument.n_micro_batches:
            self._instrument.recorder.begin_micro_batch()
        self._begun = True

    def micro_batch(self, loss: torch.Tensor, inputs: Mapping[str, Any] | None = None) -> None:
        """Tells of a micro-batch, between its forward and its backward pass.

        Args:
            loss: float [], what the model gave; what it weighs in the step is read from its gradient.
            inputs: the model's arguments, kept until the step's end to name the module if it goes wrong.

        Raises:
            ValueError: `begin_micro_batch` was not called before the forward pass.
        """
        if not self._begun:
            raise ValueError(say("attach.not_begun"))
        self._begun = False
        self._inputs.append(inputs or {})
        self._counts.append(_counts(inputs or {}))
        value = loss.detach().float()
        self._bad.append(~torch.isfinite(value))

        def weigh(grad: torch.Tensor) -> None:
            self._weighted.append(value * grad.detach().float())
            # after the last gradient of this backward pass has been accumulated
            torch.autograd.Variable._execution_engine.queue_callback(self._accumulated)

        if loss.requires_grad:
            loss.register_hook(weigh)

    def _accumulated(self) -> None:
        self._rows = self._instrument.gradient_rows()


def _counts(inputs: Mapping[str, Any]) -> tuple[Any, Any, int]:
    """Tokens, supervised tokens and the longest row of a micro-batch, the first two on the device."""
    ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if not isinstance(ids, torch.Tensor):
        return 0, 0, 0
    real = mask.sum() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else ids.numel()
    supervised = (labels[..., 1:] >= 0).sum() if isinstance(labels, torch.Tensor) else 0
    return real, supervised, ids.shape[-1]
