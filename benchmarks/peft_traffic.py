"""Bytes that PEFT's own LoRA layer moves, counted by running it on tensors without memory.

PEFT's forward, and autograd's backward of it, run under `FakeTensorMode`, which knows shapes and dtypes only, at the
real sizes. Every ATen operator is a launch that reads its inputs once and writes its outputs once; views are free.
Nothing of PEFT is rewritten here, so a PEFT that does better counts as better.

As the Trainer's `fp16=True` runs it: autocast to fp16, LoRA weights in fp32 (PEFT's `autocast_adapter_dtype`).
Two forwards differ. `Linear` (16-bit base) makes an fp32 copy of X first. `Linear4bit` (NF4 base) does not under
autocast, and clones Y; here its base weight is 16-bit, that is decoded already, which neither contender is billed.

Dropout is `native_dropout`, which `F.dropout` is on CUDA: one launch, and a mask of a byte per element.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig
from peft.tuners.lora import bnb
from peft.tuners.lora import layer as peft_layer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .fused_traffic import Linear
from .traffic import Access, Launch

FORWARDS: dict[str, Any] = {"16-bit base": peft_layer.Linear.forward, "4-bit base": bnb.Linear4bit.forward}
DROPOUT_P = 0.05
MOVES_NOTHING = ("prim.device.default", "aten.new_empty_strided.default", "aten.empty_like.default")


class OperatorCounter(TorchDispatchMode):
    """Appends a launch for every operator that is more than a view."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self._names = names  # by storage
        self._alive: list[torch.Tensor] = []  # or the number of a storage could come again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        read = {self._key(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        written = {self._key(t): t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor)}
        in_place = func._schema.is_mutable
        if str(func) in MOVES_NOTHING or (not in_place and written.keys() <= read.keys()):
            return outputs
        launch = Launch(str(func).removeprefix("aten.").split(".")[0])
        for key, tensor in (read | written).items():
            size = tensor.numel() * tensor.element_size()
            access = Access(self._name(key, tensor), size)
            access.loaded = size if key in read else 0
            access.stored = size if key in written else 0
            launch.accesses[access.tensor] = access
        self.launches.append(launch)
        return outputs

    def _key(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        return tensor.untyped_storage()._cdata

    def _name(self, key: int, tensor: torch.Tensor) -> str:
        shape = " x ".join(map(str, tensor.shape))
        return self._names.setdefault(key, f"{str(tensor.dtype).removeprefix('torch.')} [{shape}] #{len(self._names)}")


def _native_dropout(x: torch.Tensor, p: float, training: bool, inplace: bool) -> torch.Tensor:
    assert not inplace
    return torch.native_dropout(x, p, training)[0]


@contextmanager
def _autocast_fp16() -> Iterator[None]:
    """Autocast of fake tensors, which are on the CPU; PEFT asks for CUDA's, which no CPU build of torch turns on."""
    with (
        torch.autocast("cpu", dtype=torch.float16),
        mock.patch.object(torch, "is_autocast_enabled", return_value=True),
        mock.patch.object(torch.nn.functional, "dropout", _native_dropout),
    ):
        yield


def _fake_parameters(module: torch.nn.Module, dtype: torch.dtype, requires_grad: bool) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        fake = torch.empty(parameter.shape, dtype=dtype)
        setattr(module, name, torch.nn.Parameter(fake, requires_grad=requires_grad))


def count_peft(layer: Linear, forward: str) -> tuple[list[Launch], list[Launch]]:
    """Operators of a forward and of its backward, in order.

    Args:
        layer: its dtype is ignored: fp16.
        forward: which of `FORWARDS`.
    """
    base = torch.nn.Linear(layer.n_in, layer.n_out, bias=layer.bias, device="meta")
    config = LoraConfig(r=layer.rank, lora_alpha=4 * layer.rank, lora_dropout=DROPOUT_P if layer.dropout else 0.0)
    module = peft_layer.Linear(base, "default", config, r=layer.rank, lora_alpha=4 * layer.rank)
    with FakeTensorMode():
        _fake_parameters(base, torch.float16, requires_grad=False)
        lora_A: Any = module.lora_A["default"]
        lora_B: Any = module.lora_B["default"]
        for lora in (lora_A, lora_B):
            _fake_parameters(lora, torch.float32, requires_grad=True)
        x_dtype = torch.float32 if layer.autocast_x else torch.float16
        x = torch.empty(layer.n_tokens, layer.n_in, dtype=x_dtype, requires_grad=True)
        dy = torch.empty(layer.n_tokens, layer.n_out, dtype=torch.float16)
        named = {"X": x, "dY": dy, "W": base.weight, "A": lora_A.weight, "B": lora_B.weight}
        if layer.bias:
            named["bias"] = base.bias
        counter = OperatorCounter({t.untyped_storage()._cdata: name for name, t in named.items()})
        with counter, _autocast_fp16():
            y = FORWARDS[forward](module, x)
            n_forward = len(counter.launches)
            # Not y.backward(): it would add what accumulating into .grad copies, which a model does not.
            torch.autograd.grad(y, [x, lora_A.weight, lora_B.weight], dy)
    return counter.launches[:n_forward], counter.launches[n_forward:]
