"""An operator of the frozen base model with its gradient, on both routes: for whoever has to see it (torch.compile, a
dispatch mode) the dispatcher's, for everyone else a plain autograd function, whose layers of Python are fewer.

    forward(*inputs, slot)         -> y, rows, *kept
    backward(dy, *saved, counted)  -> rows, *gradients          of the first inputs; the others are frozen

`slot` float64 [1 + gradients, 9], or None, gets the row of y in forward and those of the gradients in backward;
`rows` are [0, 9] without it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backend import runs_directly
from .lora_linear.ops import store


def operator(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    saved: Callable[..., tuple[list[Tensor | None], tuple[Any, ...]]],
    fake_forward: Callable[..., tuple[Tensor, ...]],
    fake_backward: Callable[..., tuple[Tensor, ...]],
) -> Callable[..., Tensor]:
    """Makes y = f(*inputs, slot) of two functions, differentiable and known to the dispatcher as lora_train::`name`.

    Args:
        forward, backward: as above, with types that `torch.library.custom_op` can read; they return new tensors.
        saved: from the inputs and results of forward, the tensors and the other arguments of backward after dy.
        fake_forward, fake_backward: shapes and dtypes of what they return.
    """
    op = torch.library.custom_op(f"lora_train::{name}", forward, mutates_args=())
    op.register_fake(fake_forward)
    backward_op = torch.library.custom_op(f"lora_train::{name}_backward", backward, mutates_args=())
    backward_op.register_fake(fake_backward)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.how = saved(*inputs[:-1], *output)
        ctx.save_for_backward(*tensors)
        # not among the saved tensors: those may not be written to before backward reads them
        ctx.slot, ctx.n_inputs = inputs[-1], len(inputs)

    def gradients(ctx: Any, dy: Tensor, compute: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor | None, ...]:
        rows, *grads = compute(dy, *ctx.saved_tensors, *ctx.how, ctx.slot is not None)
        if ctx.slot is not None:
            store(ctx.slot[1:], rows)
        return *grads, *[None] * (ctx.n_inputs - len(grads))

    def keep_results(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        keep(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[1:])

    op.register_autograd(lambda ctx, dy, *_: gradients(ctx, dy, backward_op), setup_context=keep_results)

    class Directly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = forward(*inputs)
            keep(ctx, inputs, output)
            if inputs[-1] is not None:
                inputs[-1][:1].copy_(output[1])
            return output[0]

        @staticmethod
        def backward(ctx, dy):  # type: ignore[reportIncompatibleMethodOverride]
            return gradients(ctx, dy, backward)

    def call(*inputs: Any) -> Tensor:
        if runs_directly(inputs[0]):
            return Directly.apply(*inputs)  # type: ignore[reportReturnType]
        y, rows, *_ = op(*inputs)
        if inputs[-1] is not None:
            store(inputs[-1][:1], rows)
        return y

    return call
