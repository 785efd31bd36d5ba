"""The optimizer step: learning rate, unscaling, clipping and the skip of a non-finite step.

    divisor = loss_scale * max(1, (grad_norm + 1e-6) / max_grad_norm)
    skip if any gradient is not finite, else apply gradient / divisor with lr_table[updates]

With adamw_torch_fused and sgd all of this stays on the device. The other optimizers take the learning rate and the
decision from the host, which waits for the device; bitsandbytes' do so again after every parameter. Stepping never
counts attempts: `updates` counts what was applied, and the schedule follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.optimization import Adafactor

from ...kernels.statistics.tensor_stats import FIELDS, multi_tensor_stats
from ..config.schema import TrainingSection

# They take the learning rate, the divisor and the skip as tensors.
ON_DEVICE = ("adamw_torch_fused", "sgd")
SUMSQ = FIELDS.index("sumsq")
N_NAN, N_INF = FIELDS.index("n_nan"), FIELDS.index("n_inf")


def has_non_finite(gradient_rows: torch.Tensor) -> torch.Tensor:
    """bool []: whether any of the gradients of these rows holds a NaN or an infinity."""
    # slices: a list of columns would be copied to the device, and the copy waits for it
    return (gradient_rows[:, N_NAN] + gradient_rows[:, N_INF]).sum() > 0


class Optimizer:
    """An optimizer that skips non-finite steps and follows a table of learning rates.

    Attributes:
        updates: int64 [] on the device, number of steps applied.
        rates: learning rate of update i.
        waits: whether a step makes the host wait for the device.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], training: TrainingSection, lr_table: Sequence[float]
    ):
        self._parameters = dict(parameters)
        self.device = next(iter(self._parameters.values())).device
        self._max_grad_norm = training.max_grad_norm
        self.rates = list(lr_table)
        self._lr_device = torch.tensor(lr_table, dtype=torch.float32, device=self.device)
        self.updates = torch.zeros((), dtype=torch.int64, device=self.device)
        self.waits = training.optim not in ON_DEVICE
        self._inner = self._build(training)

    def _build(self, training: TrainingSection) -> torch.optim.Optimizer:
        # as in transformers: matrices decay, biases and norms do not
        decays, rest = [], []
        for parameter in self._parameters.values():
            (decays if parameter.ndim >= 2 else rest).append(parameter)
        groups = [
            {"params": decays, "weight_decay": training.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        common: dict[str, Any] = {"betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon}
        kind = training.optim
        if kind == "adamw_torch_fused":
            return torch.optim.AdamW(groups, lr=self._lr_device[0].clone(), fused=True, **common)
        if kind == "sgd":
            return torch.optim.SGD(groups, lr=self._lr_device[0].clone(), fused=True)
        if kind == "adamw_torch":
            return torch.optim.AdamW(groups, lr=self.rates[0], **common)
        if kind == "adafactor":  # as transformers' Trainer sets it up
            return Adafactor(groups, lr=self.rates[0], scale_parameter=False, relative_step=False)
        import bitsandbytes.optim

        name = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit"}
        return getattr(bitsandbytes.optim, name[kind])(groups, lr=self.rates[0], **common)

    @property
    def gradients(self) -> list[torch.Tensor]:
        """Scaled float32 gradients; a parameter that took no part has zeros."""
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def gradient_rows(self) -> torch.Tensor:
        """Statistics of the accumulated gradients as they are in memory, scaled: float64 [parameters, 9]."""
        return multi_tensor_stats([gradient.contiguous() for gradient in self.gradients])

    def step(
        self, gradient_rows: torch.Tensor, loss_scale: torch.Tensor, hold: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Applies the accumulated gradients, or skips them if any is not finite, and clears them.

        Args:
            gradient_rows: what `gradient_rows()` gave.
            loss_scale: float32 [], the factor the gradients carry.
            hold: bool [], whether to skip them in any case (instrument/record/latch.py).

        Returns:
            grad_norm float32 [], unscaled and before clipping, NaN where a gradient is not finite; found_inf float32
            [], 1 where the step was skipped.
        """
        bad = has_non_finite(gradient_rows)
        grad_norm = torch.where(bad, torch.nan, gradient_rows[:, SUMSQ].sum().sqrt() / loss_scale).float()
        found_inf = (bad | hold).float()
        divisor = loss_scale.clone()
        if self._max_grad_norm > 0:
            divisor = divisor * ((grad_norm + 1e-6) / self._max_grad_norm).clamp(min=1.0)
        if self.waits:
            self._step_on_host(divisor, found_inf)
        else:
            self._step_on_device(divisor, found_inf)
        self.updates += (1 - found_inf).long()
        self.clear()
        return grad_norm, found_inf

    def clear(self) -> None:
        """Drops the accumulated gradients."""
        self._inner.zero_grad(set_to_none=True)

    def follow(self, lr_table: Sequence[float]) -> None:
        """Takes the learning rates from another table from now on."""
        self.rates[:] = lr_table
        self._lr_device = torch.tensor(lr_table, dtype=torch.float32, device=self.device)

    def _step_on_device(self, divisor: torch.Tensor, found_inf: torch.Tensor) -> None:
        # indexing with a tensor would read it on the host
        learning_rate = self._lr_device.index_select(0, self.updates.view(1)).squeeze(0)
        for group in self._inner.param_groups:
            group["lr"].copy_(learning_rate)
        # torch's fused optimizers read these two attributes (GradScaler's protocol)
        self._inner.grad_scale = divisor  # pyright: ignore[reportAttributeAccessIssue]
        self._inner.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        self._inner.step()

    def _step_on_host(self, divisor: torch.Tensor, found_inf: torch.Tensor) -> None:
        if found_inf.item():  # waits for the device
            return
        torch._foreach_div_(self.gradients, divisor)
        for group in self._inner.param_groups:
            group["lr"] = self.rates[int(self.updates)]
        self._inner.step()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Flat tensors: "<parameter>.<key>" for every state of the inner optimizer, and "updates"."""
        state: dict[str, torch.Tensor] = {"updates": self.updates}
        for name, parameter in self._parameters.items():
            for key, value in self._inner.state.get(parameter, {}).items():
                state[f"{name}.{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        return state

    def foreign(self, state: Mapping[str, torch.Tensor], step: int) -> list[str]:
        """Names of a `state_dict()` after `step` steps that are not of these parameters, or not as they must be."""
        updates = state.get("updates")
        whole = updates is not None and updates.dtype == torch.int64 and updates.ndim == 0 and 0 <= updates <= step
        found = [] if whole else ["updates"]
        for name, value in state.items():
            parameter, key = self._parameters.get(name.rpartition(".")[0]), name.rpartition(".")[2]
            if name == "updates" or (parameter is not None and _fits(key, value, parameter)):
                continue
            found.append(name)
        for name in self._parameters:  # torch's Adam makes its three states together
            moments = [f"{name}.{key}" in state for key in ("step", "exp_avg", "exp_avg_sq")]
            if moments[1] and not all(moments):
                found.append(name)
        return found

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continues from `state_dict()`. Learning rate and decay stay those of the configuration."""
        self.updates = state["updates"].to(self.device)
        for name, parameter in self._parameters.items():
            prefix = f"{name}."
            own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            for key, value in own.items():
                self._inner.state[parameter][key] = self._restored(key, value)

    def _restored(self, key: str, value: torch.Tensor) -> torch.Tensor | int:
        if key != "step" or not self.waits:
            return value.to(self.device)
        # torch's unfused AdamW counts in a float tensor on the host, bitsandbytes in a Python int
        return value.cpu() if value.is_floating_point() else int(value)


def _fits(key: str, value: torch.Tensor, parameter: torch.nn.Parameter) -> bool:
    if key in ("exp_avg", "exp_avg_sq"):
        return value.shape == parameter.shape and value.is_floating_point()
    return (key not in ("state1", "state2") or value.shape == parameter.shape) and (key != "step" or value.numel() == 1)
