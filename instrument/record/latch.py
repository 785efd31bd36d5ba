"""The flag on the device that freezes a run on the step that went wrong, before the host knows.

    set when   the loss of a step is not finite, or
               a step is skipped for the `patience`-th time in a row while the loss scale cannot fall any further, or
               for the `MAX_SKIPS`-th time in a row
    while set  every update is masked: adapter, optimizer, loss scale and counters stay those of the step that set it

The host reads the flag with the step's other scalars, up to a ring of steps later; what was masked runs again. The
first back-offs of a high initial loss scale are no incident: the scale is still falling. No call here makes the host
wait for the device.
"""

from __future__ import annotations

import torch

# Torch's 65536 reaches 1 in 16 halvings.
MAX_SKIPS = 30
# A fixed scale, or one at its floor, gets a second and a third batch before the step counts as collapsed.
PATIENCE = 3


class Latch:
    """One flag and the length of the current run of skipped steps, both on the device.

    Attributes:
        set: bool [], whether updates are masked.
    """

    def __init__(self, device: torch.device | str, *, patience: int = PATIENCE):
        self._patience = patience
        self.set = torch.zeros((), dtype=torch.bool, device=device)
        self._skips = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, loss: torch.Tensor, bad_gradient: torch.Tensor, scale_can_fall: torch.Tensor) -> torch.Tensor:
        """Looks at a step before it is applied.

        Args:
            loss: float [], of the whole step.
            bad_gradient: bool [], whether any gradient is not finite.
            scale_can_fall: bool [], whether skipping this step lowers the loss scale.

        Returns:
            bool [], the flag from this step on.
        """
        skips = torch.where(bad_gradient, self._skips + 1, 0)
        stuck = (skips >= self._patience) & ~scale_can_fall
        bad = ~torch.isfinite(loss) | (bad_gradient & (stuck | (skips >= MAX_SKIPS)))
        self._skips = torch.where(self.set, self._skips, skips)
        self.set = self.set | bad
        return self.set
