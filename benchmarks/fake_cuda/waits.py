"""What would make the host wait for a GPU, or copy pageable memory to it: told by where a tensor comes from.

The fake driver's tensors are CPU tensors, so no copy shows by itself. A tensor counts as the GPU's if it was alive when
the watch began, was made with a `device=` of the code's own, or came out of an operator that read one of the GPU's;
everything else is the host's. Then these are faults, each with the line of the repository that did it:

    a number of the GPU's is read          .item(), bool(), .tolist(), .cpu(), .numpy(), a copy to memory not pinned
    a size depends on values               nonzero, a boolean mask, unique, bincount, repeat_interleave
    the host's memory is copied over       torch.tensor(..., device=), .to(device), an index made of a list
                                           (from pinned memory and with non_blocking=True it is no fault)
    the host's tensor enters an operator   unless it is a single number, which is an argument of the kernel
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .driver import pinned

ROOT = Path(__file__).resolve().parents[2]
HANDS_ON = ("attach", "trainer.py")
READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__"}
MAKES_A_COPY = {"tensor", "as_tensor", "new_tensor", "asarray"}
DATA_DEPENDENT = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::bincount", "aten::repeat_interleave", "aten::equal", "aten::is_nonzero", "aten::_local_scalar_dense",
}  # fmt: skip
INDEXES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


class Waits:
    """The faults found, as "what: file:line", in order."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._of_gpu: dict[int, Any] = {}

    def is_of_gpu(self, tensor: torch.Tensor) -> bool:
        return _address(tensor) in self._of_gpu

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return _address(tensor) in pinned

    def is_host(self, tensor: torch.Tensor) -> bool:
        """Whether it holds values, and the host does."""
        return bool(tensor.numel()) and not self.is_of_gpu(tensor)

    def give_to_gpu(self, value: Any) -> None:
        for tensor in tensors(value):
            if not self.is_pinned(tensor):
                # kept alive, or another tensor could get its address
                self._of_gpu[_address(tensor)] = tensor.untyped_storage()

    def found(self, what: str) -> None:
        self.faults.append(f"{what}: {_where()}")


class _Operators(TorchDispatchMode):
    """Follows tensors through every operator, backward passes included."""

    sees_through_operators = True

    def __init__(self, waits: Waits):
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, waits, name = kwargs or {}, self._waits, func._schema.name
        inputs = tensors((args, kwargs))
        if any(waits.is_of_gpu(tensor) for tensor in inputs):
            if name == "aten::copy_":
                self._copies(*args, **kwargs)
            elif name in DATA_DEPENDENT:
                waits.found(f"{name} needs values")
            elif name in INDEXES and any(index.dtype == torch.bool for index in tensors(args[1])):
                waits.found(f"{name} by a boolean mask")
            else:
                may_be_a_number = name not in INDEXES and name not in ("aten::cat", "aten::stack")
                for tensor in inputs:
                    if waits.is_host(tensor) and not (may_be_a_number and tensor.ndim == 0):
                        waits.found(f"{name} reads a tensor of the host, {list(tensor.shape)}")
        out = func(*args, **kwargs)
        to_host = name == "aten::copy_" and not waits.is_of_gpu(args[0])
        if not to_host and any(waits.is_of_gpu(tensor) for tensor in inputs):
            waits.give_to_gpu(out)
        return out

    def _copies(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> None:
        waits = self._waits
        to_gpu, from_gpu = waits.is_of_gpu(to), waits.is_of_gpu(source)
        if not to.numel() or to_gpu == from_gpu or (to_gpu and source.ndim == 0):
            return
        if not (non_blocking and waits.is_pinned(source if to_gpu else to)):
            waits.found(
                "a copy to the GPU from memory not pinned" if to_gpu else "a copy to the host that is waited for"
            )


class _Functions(TorchFunctionMode):
    """What operators do not show: where a tensor is asked to be, and that its values are read."""

    def __init__(self, waits: Waits):
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, waits, name = kwargs or {}, self._waits, getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is not None and name in READS and waits.is_of_gpu(first):
            waits.found(f"Tensor.{name} reads a number")
        device = kwargs.get("device")
        if name in MAKES_A_COPY and (isinstance(device, torch.device) or name == "new_tensor"):
            waits.found(f"{name} copies values of the host")
        out = func(*args, **kwargs)
        if name == "to" and first is not None and _asked_device(args[1:], kwargs) and waits.is_host(first):
            if not (waits.is_pinned(first) and kwargs.get("non_blocking")):
                waits.found("Tensor.to copies memory of the host that is not pinned")
            out = out.clone()
            waits.give_to_gpu(out)
        elif isinstance(device, torch.device):
            waits.give_to_gpu(out)
        return out


@contextmanager
def watched() -> Iterator[Waits]:
    """While it lasts, every tensor is followed; all that are alive now count as the GPU's."""
    waits = Waits()
    waits.give_to_gpu([found for found in gc.get_objects() if _is_tensor(found)])
    functions, run_backward = _Functions(waits), torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        with functions:  # torch switches it off in what a function it has seen calls
            return run_backward(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.autograd, "_engine_run_backward", backward))
        stack.enter_context(functions)
        stack.enter_context(_Operators(waits))
        yield waits


def tensors(value: Any) -> list[torch.Tensor]:
    """The plain tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(value) if _is_tensor(leaf)]


def _is_tensor(value: Any) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) and value.device.type == "cpu"


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _asked_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return isinstance(kwargs.get("device"), torch.device) or any(isinstance(a, torch.device) for a in args)


def _where() -> str:
    """The innermost line of the repository outside this folder; not one that only hands a foreign loop's call on."""
    handed_on = False
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        path = path.resolve() if path.is_absolute() else path  # <frozen runpy> lies nowhere
        if path.is_relative_to(ROOT) and Path(__file__).parent not in path.parents and ".venv" not in path.parts:
            if handed_on and path.parts[-2:] == HANDS_ON:
                continue
            return f"{path.relative_to(ROOT)}:{frame.lineno}".removeprefix("lora_train/")
        handed_on = handed_on or "transformers" in path.parts or "accelerate" in path.parts
    return "outside the repository"
