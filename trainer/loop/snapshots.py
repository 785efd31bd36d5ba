"""Snapshots of a run in training, kept in host memory: adapter, optimizer and loss scale are small.

One is taken every `SNAPSHOT_EVERY` steps. On CUDA it goes into pinned memory without waiting; whether it is finite
is asked only when it is needed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import torch

from ..model.load import trainable
from ..saved.state import Progress
from .components import Components

SNAPSHOT_EVERY = 100
# The newest may have been taken after the trouble began and before it was seen.
N_SNAPSHOTS = 2


@dataclass(frozen=True)
class Snapshot:
    """The state after `progress.step` steps, on the host."""

    progress: Progress
    adapter: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    loss_scale: dict[str, torch.Tensor]

    def is_finite(self) -> bool:
        """Whether every value of adapter and optimizer is."""
        return all(bool(torch.isfinite(t).all()) for t in (*self.adapter.values(), *self.optimizer.values()))


class Snapshots:
    """The last snapshots of a run, oldest first."""

    def __init__(self, components: Components):
        self._model, self._optimizer = components.model, components.optimizer
        self._loss_scale = components.loss_scale
        self._kept: deque[Snapshot] = deque(maxlen=N_SNAPSHOTS)

    def take(self, progress: Progress) -> Snapshot:
        """The state now; it is not among those that are kept."""
        states = (trainable(self._model), self._optimizer.state_dict(), self._loss_scale.state_dict())
        adapter, optimizer, loss_scale = (
            {name: _on_host(tensor.detach()) for name, tensor in state.items()} for state in states
        )
        return Snapshot(replace(progress), adapter, optimizer, loss_scale)

    def keep(self, progress: Progress) -> None:
        """Keeps the state now; the oldest goes."""
        self._kept.append(self.take(progress))

    def newest(self, before: int) -> Snapshot | None:
        """The newest finite one of a state from before that step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return next((s for s in reversed(self._kept) if s.progress.step < before and s.is_finite()), None)

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Puts a state back."""
        for name, parameter in trainable(self._model).items():
            parameter.copy_(snapshot.adapter[name])
        self._optimizer.load_state_dict({name: tensor.clone() for name, tensor in snapshot.optimizer.items()})
        self._loss_scale.load_state_dict({name: tensor.clone() for name, tensor in snapshot.loss_scale.items()})


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
