"""The fp16 loss scale, kept on the device.

    dynamic   a step with a non-finite gradient halves the scale (after `hysteresis` of them), `growth_interval`
              clean steps in a row double it, and it never falls below `min_scale`: torch's GradScaler has no
              floor, and 166 skips take its 65536 to exactly 0, from which nothing returns
    static    the scale stays; without fp16 it is 1

The floor and the hysteresis are Megatron-LM's idea (megatron/core/optimizer/grad_scaler.py). No call here makes
the host wait for the device.
"""

from __future__ import annotations

import torch

# torch.amp.GradScaler's values
INITIAL_SCALE = 65536.0
GROWTH_INTERVAL = 2000
MAX_SCALE = 2.0**24


class LossScale:
    """A loss scale that lives on the device.

    Attributes:
        scale: float32 [], the factor in force.
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        initial: float = INITIAL_SCALE,
        dynamic: bool = True,
        min_scale: float = 1.0,
        growth_interval: int = GROWTH_INTERVAL,
        hysteresis: int = 1,
    ):
        self.dynamic, self.min_scale = dynamic, min_scale
        self.growth_interval, self.hysteresis = growth_interval, hysteresis
        self.scale = torch.tensor(initial, dtype=torch.float32, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._bad_left = torch.tensor(hysteresis, dtype=torch.int64, device=device)

    def can_fall(self) -> torch.Tensor:
        """bool []: whether a non-finite step lowers the scale, now or once the hysteresis is used up."""
        return self.scale > self.min_scale if self.dynamic else torch.zeros_like(self.scale, dtype=torch.bool)

    def update(self, found_inf: torch.Tensor, hold: torch.Tensor) -> None:
        """Adjusts the scale after a step.

        Args:
            found_inf: float32 [], 1 if the step's gradients held a non-finite value, else 0.
            hold: bool [], whether everything stays as it is (latch.py).
        """
        if not self.dynamic:
            return
        bad = found_inf > 0
        good_steps = torch.where(bad, 0, self._good_steps + 1)
        bad_left = torch.where(bad, (self._bad_left - 1).clamp(min=0), self._bad_left)
        grow = good_steps >= self.growth_interval
        back_off = bad & (bad_left == 0)
        grown = torch.where(grow, (self.scale * 2).clamp(max=MAX_SCALE), self.scale)
        scale = torch.where(back_off, (self.scale * 0.5).clamp(min=self.min_scale), grown)
        self.scale = torch.where(hold, self.scale, scale)
        self._good_steps = torch.where(hold, self._good_steps, torch.where(grow, 0, good_steps))
        self._bad_left = torch.where(hold, self._bad_left, torch.where(grow, self.hysteresis, bad_left))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """scale float32 [], good_steps int64 [], bad_left int64 []."""
        return {"scale": self.scale, "good_steps": self._good_steps, "bad_left": self._bad_left}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continues from `state_dict()`."""
        device = self.scale.device
        self._good_steps, self._bad_left = state["good_steps"].to(device), state["bad_left"].to(device)
        if self.dynamic:
            self.scale = state["scale"].to(device)
