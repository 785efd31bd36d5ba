"""Operators with a gradient. There are two routes to one: for whoever has to see it (torch.compile, fake tensors, a
dispatch mode) the dispatcher's, for everyone else a plain autograd function, whose layers of Python are fewer.

    operator      the first: a function that torch knows as lora_train::`name`
    direct        the second
    both_routes   both, of a forward and a backward that are functions of tensors

What backward needs is `Saved`: tensors, which may not be written to before, and anything else, which may.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import CustomOpDef

from .backend import runs_directly

Saved = tuple[Sequence[Tensor | None], Any]

Differentiate = Callable[[Sequence[Tensor | None], Sequence[Tensor], Any, Sequence[bool]], tuple]
"""From the gradients of the outputs, the saved tensors, what else was saved, and which inputs need one: the gradient of
every input. Of several outputs one that took no part has None.
"""


@torch.library.custom_op("lora_train::store", mutates_args=("slot",))
def store(slot: Tensor, rows: Tensor) -> None:
    """Assigns `rows` to `slot`. An operator of its own because one that mutates cannot have a gradient."""
    slot.copy_(rows)


@store.register_fake
def _(slot: Tensor, rows: Tensor) -> None:
    return None


def operator(
    name: str,
    save: Callable[[tuple, tuple], Saved],
    differentiate: Differentiate,
) -> Callable[[Callable[..., tuple]], CustomOpDef]:
    """Makes an operator of a function, whose types `torch.library.custom_op` must be able to read. It returns new
    tensors, of which the first, or every one of a first list, has a gradient. `register_fake` is the caller's.

    Args:
        save: from inputs and outputs what backward needs.
    """

    def keep(ctx: Any, inputs: tuple, output: tuple) -> None:
        tensors, ctx.how = save(inputs, output)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(not isinstance(output[0], Sequence))

    def gradients(ctx: Any, grad: Any, *_: Any) -> tuple:
        grads = grad if isinstance(grad, Sequence) else [grad]
        return differentiate(grads, ctx.saved_tensors, ctx.how, ctx.needs_input_grad)

    def register(forward: Callable[..., tuple]) -> CustomOpDef:
        op = torch.library.custom_op(f"lora_train::{name}", forward, mutates_args=())
        op.register_autograd(gradients, setup_context=keep)
        return op

    return register


def direct(forward: Callable[..., tuple[Any, Saved]], differentiate: Differentiate) -> Callable[..., Any]:
    """The same without the dispatcher, of a forward that returns a tensor or a tuple of them, and what to save.

    autograd looks at each argument, so there should be few that are no tensors.
    """

    @once_differentiable
    def gradients_once(ctx: Any, *grads: Tensor | None) -> tuple:
        return differentiate(grads, ctx.saved_tensors, ctx.how, ctx.needs_input_grad)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output, (tensors, ctx.how) = forward(*inputs)
            if isinstance(output, tuple):
                ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors)
            return output

        @staticmethod
        def backward(ctx, *grads):  # type: ignore[reportIncompatibleMethodOverride]
            if torch.is_grad_enabled():  # whoever wants a second derivative gets torch's error; else its frame is cost
                return gradients_once(ctx, *grads)
            return differentiate(grads, ctx.saved_tensors, ctx.how, ctx.needs_input_grad)

    return Direct.apply


def both_routes(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    saved: Callable[..., tuple[list[Tensor], tuple]],
    fakes: tuple[Callable[..., tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]],
    has_slot: bool = True,
) -> Callable[..., Tensor]:
    """Makes y = f(*inputs) of two functions, differentiable and known to the dispatcher as lora_train::`name`.

        forward(*inputs)                        -> y, *others
        backward(dy, *tensors, *how)            -> gradients of the first inputs; the others are frozen

    With a slot, float64 [1 + gradients, 9] or None, that is the last of the inputs, and gets rows of statistics: that
    of y in forward and those of the gradients in backward; they are [0, 9] where it is None.

        forward(*inputs, slot)                  -> y, rows, *others
        backward(dy, *tensors, *how, counted)   -> rows, *gradients

    Args:
        forward, backward: with types that `torch.library.custom_op` can read; they return new tensors.
        saved: from inputs without the slot and outputs, the tensors and how; the slot is not among the tensors, for
            those may not be written to.
        fakes: of forward and of backward, shapes and dtypes of what they return.
    """
    backward_op = torch.library.custom_op(f"lora_train::{name}_backward", backward, mutates_args=())
    backward_op.register_fake(fakes[1])

    def save(inputs: tuple, output: tuple) -> Saved:
        tensors, how = saved(*(inputs[:-1] if has_slot else inputs), *output)
        return tensors, (how, inputs[-1] if has_slot else None, len(inputs))

    def differentiate_by(compute: Callable[..., tuple[Tensor, ...]]) -> Differentiate:
        def differentiate(dy: Sequence[Tensor | None], tensors: Sequence[Tensor], kept: Any, _: Any) -> tuple:
            how, slot, n_inputs = kept
            found = compute(*dy, *tensors, *how, *([slot is not None] if has_slot else []))
            if slot is not None:
                store(slot[1:], found[0])
            grads = found[1:] if has_slot else found
            return *grads, *[None] * (n_inputs - len(grads))

        return differentiate

    op = operator(name, save, differentiate_by(backward_op))(forward)
    op.register_fake(fakes[0])

    def forward_directly(*inputs: Any) -> tuple[Tensor, Saved]:
        output = forward(*inputs)
        if has_slot and inputs[-1] is not None:
            inputs[-1][:1].copy_(output[1])
        return output[0], save(inputs, output)

    def by_dispatcher(*inputs: Any) -> Tensor:
        output = op(*inputs)
        if has_slot and inputs[-1] is not None:
            store(inputs[-1][:1], output[1])
        return output[0]

    apply = direct(forward_directly, differentiate_by(backward))
    return lambda *inputs: (apply if runs_directly(inputs[0]) else by_dispatcher)(*inputs)
