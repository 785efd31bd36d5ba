"""The last healthy states of a run, kept in host memory: adapter, optimizer and loss scale are small.

A copy is taken every `HEALTHY_EVERY` steps. On CUDA it goes into pinned memory without waiting; whether it is finite
is asked only when it is needed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import torch
from peft import PeftModel

from ...instrument.record.loss_scale import LossScale
from ..model.load import trainable
from .checkpoint import Progress
from .optim import Optimizer

HEALTHY_EVERY = 100
# The newest may have been taken after the trouble began and before it was seen.
N_COPIES = 2


@dataclass(frozen=True)
class Copy:
    """The state after `progress.step` steps, on the host."""

    progress: Progress
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    loss_scale: dict[str, torch.Tensor]

    def is_finite(self) -> bool:
        """Whether every value of adapter and optimizer is."""
        return all(bool(torch.isfinite(t).all()) for t in (*self.adapter.values(), *self.optimizer.values()))


class Healthy:
    """The last copies, oldest first."""

    def __init__(self, model: PeftModel, optimizer: Optimizer, loss_scale: LossScale):
        self._model, self._optimizer, self._loss_scale = model, optimizer, loss_scale
        self._copies: deque[Copy] = deque(maxlen=N_COPIES)

    def copy(self, progress: Progress) -> Copy:
        """The state now."""
        states = (trainable(self._model), self._optimizer.state_dict(), self._loss_scale.state_dict())
        adapter, optimizer, loss_scale = (
            {name: _on_host(tensor.detach()) for name, tensor in state.items()} for state in states
        )
        return Copy(replace(progress), adapter, optimizer, loss_scale)

    def keep(self, progress: Progress) -> None:
        """Remembers the state now; the oldest copy goes."""
        self._copies.append(self.copy(progress))

    def newest(self, before: int) -> Copy | None:
        """The newest finite copy of a state from before that step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return next((c for c in reversed(self._copies) if c.progress.step < before and c.is_finite()), None)

    @torch.no_grad()
    def restore(self, copy: Copy) -> None:
        """Puts a state back."""
        for name, parameter in trainable(self._model).items():
            parameter.copy_(copy.adapter[name])
        self._optimizer.load_state_dict({name: tensor.clone() for name, tensor in copy.optimizer.items()})
        self._loss_scale.load_state_dict({name: tensor.clone() for name, tensor in copy.loss_scale.items()})


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
