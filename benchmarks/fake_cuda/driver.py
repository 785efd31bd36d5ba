"""A CUDA driver without a GPU: Triton specialises, and if asked compiles, what would be launched; nothing is launched.

CPU tensors stand for those of a GPU of a chosen compute capability. Launchers, operators and the trainer run as they
would there; what a kernel would have written is what `torch.empty` left in memory. Unlike the interpreter this meets
Triton's own argument specialisation (an int that is 1 becomes a constant, one divisible by 16 is known to be), and
unlike signatures written by hand it meets the arguments of real launches.

    with fake_cuda(90) as driver:
        ...
    driver.launches      launches by kernel name
    driver.variants      what Triton would have compiled, in the order of the first launch

Not under TRITON_INTERPRET=1, which replaces the compiler.
"""

from __future__ import annotations

import itertools
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import triton
from lora_train.kernels import backend
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver as triton_driver
from triton.runtime.jit import JITFunction

MULTIPROCESSORS = {75: 40, 80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
"""Of a T4, A100, 3090, 4090, H100, B200, 5090 (their data sheets)."""

OPTIONS = "num_warps", "num_stages", "enable_fp_fusion", "maxnreg"
"""Of a launch, those that decide what is compiled."""

# Triton keeps what it compiled by device number: each driver has one of its own.
_device_numbers = itertools.count(1000)


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel: what Triton compiles once and then keeps."""

    fn: Any
    """The `@triton.jit` function."""
    signature: dict[str, str]
    constexprs: dict[Any, Any]
    attrs: dict[Any, Any]
    options: dict[str, Any]
    chip: int

    @property
    def name(self) -> str:
        return self.fn.__name__

    def key(self) -> str:
        """Equal for variants that differ in the chip alone."""
        options = {name: self.options.get(name) for name in OPTIONS}
        fields = (self.signature, self.constexprs, self.attrs, options)
        return f"{self.fn.__module__}.{self.name} " + " ".join(str(sorted(f.items(), key=str)) for f in fields)

    def compile(self, chip: int | None = None) -> Any:
        """What Triton makes of it, kept in Triton's own cache on disk.

        Raises:
            triton.CompilationError: the kernel is wrong for these arguments.
        """
        chip = chip or self.chip
        source = ASTSource(self.fn, self.signature, self.constexprs, self.attrs)
        options = {n: self.options[n] for n in OPTIONS if n in self.options}
        return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)


@dataclass
class FakeDriver:
    """What went through the driver.

    Attributes:
        chip: compute capability, 90 for 9.0.
        launches: by kernel name.
        variants: in the order of the first launch.
    """

    chip: int
    compiles: bool
    launches: Counter[str] = field(default_factory=Counter)
    variants: list[Variant] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = next(_device_numbers)
        properties = {
            "max_shared_mem": 227 * 1024,
            "multiprocessor_count": MULTIPROCESSORS[self.chip],
            "warpSize": 32,
        }
        self.utils = types.SimpleNamespace(get_device_properties=lambda _device: properties)

    # what Triton asks its driver
    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def set_current_device(self, _device: int) -> None:
        pass

    def is_active(self) -> bool:
        return True

    def specialise(self, fn: JITFunction, key: Any, signature: Any, constexprs: Any, options: Any, attrs: Any) -> Any:
        """Stands for `JITFunction._do_compile`: a kernel that counts its launches."""
        variant = Variant(fn, dict(signature), dict(constexprs), dict(attrs), dict(options.__dict__), self.chip)
        self.variants.append(variant)
        if self.compiles:
            variant.compile()
        kernel = _Kernel(variant.name, self.launches)
        fn.device_caches[self.device][0][key] = kernel
        return kernel


class _Kernel:
    """Stands for a compiled kernel."""

    function = packed_metadata = None

    def __init__(self, name: str, launches: Counter[str]):
        self._name, self._launches = name, launches

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *_: Any) -> None:
        self._launches[self._name] += 1

    def __getitem__(self, _grid: tuple[int, ...]) -> Callable[..., None]:
        return self.run


pinned: dict[int, Any] = {}
"""Memory of the host that a GPU could copy from by itself: storages by address, kept alive."""


def _pin_memory(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.clone()
    pinned[copy.untyped_storage().data_ptr()] = copy.untyped_storage()
    return copy


@contextmanager
def fake_cuda(chip: int, compile: bool = False) -> Iterator[FakeDriver]:
    """While it lasts, CPU tensors count as those of a GPU without one.

    Args:
        chip: compute capability, a key of MULTIPROCESSORS.
        compile: also compile each variant as it first appears; an error of the compiler is raised where it is
            launched. Else `Variant.compile` does that later.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("unset TRITON_INTERPRET: the interpreter replaces the compiler")
    fake = FakeDriver(chip, compile)
    pinned.clear()

    def do_compile(fn, key, signature, _device, constexprs, options, attrs, _warmup):
        return fake.specialise(fn, key, signature, constexprs, options, attrs)

    gpu = backend.StandIn(MULTIPROCESSORS[chip], (chip // 10, chip % 10))
    with ExitStack() as stack:
        stack.enter_context(patch.object(JITFunction, "_do_compile", do_compile))
        active = "_active" if hasattr(triton_driver, "_active") else "active"  # Triton before 3.7: a plain attribute
        stack.enter_context(patch.object(triton_driver, active, fake))
        stack.enter_context(backend.standing_in(gpu))
        stack.enter_context(patch.object(torch.cuda, "Event", _Event))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", _pin_memory))
        yield fake


class _Event:
    """Stands for torch.cuda.Event: everything before it is over."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def record(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass
