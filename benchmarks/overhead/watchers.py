"""What people hang on the stock Trainer today to see numbers of every layer.

    items        hooks on every LoRA layer and the norm of every gradient, each read with .item()
    histograms   what wandb.watch(model, log="gradients", log_freq=1) does
    debug        transformers.debug_utils.DebugUnderflowOverflow
    foreach      the norm of every gradient after the backward pass, in one multi-tensor call

What they find is put into `log`, as it would be handed to a tracker, and replaced at the next step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

N_BINS = 64  # wandb's

Log = dict[str, Any]
AfterBackward = Callable[[], None]


def trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that are trained, with their names."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def items(model: torch.nn.Module, log: Log) -> AfterBackward:
    """Norms of what goes in and out of every LoRA layer, forward and backward, and of every gradient."""

    def watch(name: str, module: Any) -> None:
        def forward(module: Any, inputs: Any, output: torch.Tensor) -> None:
            log[f"{name}:out"] = output.detach().norm().item()

        def backward(module: Any, grad_input: Any, grad_output: Any) -> None:
            log[f"{name}:grad_out"] = grad_output[0].norm().item()
            if grad_input[0] is not None:  # the first layer's input needs no gradient
                log[f"{name}:grad_in"] = grad_input[0].norm().item()

        module.register_forward_hook(forward)
        module.register_full_backward_hook(backward)

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            watch(name, module)

    def gradients() -> None:
        for name, parameter in trained(model):
            if parameter.grad is not None:
                log[f"{name}.grad"] = parameter.grad.norm().item()

    return gradients


def histograms(model: torch.nn.Module, log: Log) -> AfterBackward:
    """A histogram of every trained parameter's gradient, from a hook on the parameter, at every step.

    The passes are those of wandb 0.2x (`integration/torch/wandb_torch.py`, log_tensor_stats): copy the gradient, look
    twice for values that are not finite, read minimum and maximum on the host, count into 64 bins between them, and
    make lists. wandb's default is every 1000 steps; its serialisation and upload are left out.
    """

    def watch(name: str, parameter: torch.nn.Parameter) -> None:
        def hook(grad: torch.Tensor) -> None:
            flat = grad.detach().clone().reshape(-1).float()
            finite = torch.isfinite(flat)
            if (~finite).all().item():
                return
            if not torch.isfinite(flat).all():
                flat = flat[finite]
            low, high = flat.min().item(), flat.max().item()
            if low == high:
                log[name] = [flat.numel()], [low, high]
                return
            counts = flat.histc(N_BINS, low, high).cpu()
            log[name] = counts.tolist(), torch.linspace(low, high, N_BINS + 1).tolist()

        parameter.register_hook(hook)

    for name, parameter in trained(model):
        watch(name, parameter)
    return lambda: None


def debug(model: torch.nn.Module, log: Log) -> AfterBackward:
    """Smallest and largest magnitude of weights, inputs and outputs of every module; raises on a NaN or an infinity."""
    from transformers.debug_utils import DebugUnderflowOverflow

    log["frames"] = DebugUnderflowOverflow(model).frames
    return lambda: None


def foreach(model: torch.nn.Module, log: Log) -> AfterBackward:
    """Norms of all gradients in one call and one copy to the host: the cheapest of them, and it sees gradients only."""

    def norms() -> None:
        named = [(name, p.grad) for name, p in trained(model) if p.grad is not None]
        values = torch.stack(list(torch._foreach_norm([grad for _, grad in named]))).tolist()
        log.update(zip([name for name, _ in named], values, strict=True))

    return norms


WATCHERS: dict[str, Callable[[torch.nn.Module, Log], AfterBackward]] = {
    "items": items,
    "histograms": histograms,
    "debug": debug,
    "foreach": foreach,
}
