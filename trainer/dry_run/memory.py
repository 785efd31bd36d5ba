"""How much memory a run needs, from the model's config alone, and the largest batch that fits.

    total = weights + gradients + optimizer states + snapshots (CPU) + kept for backward + temporaries + overhead

The step itself is not estimated by a formula: the fake (fake_model.py) runs it in fake-tensor mode, a meter follows
every storage from its birth to its release, and the largest sum ever alive is the peak. What the fused operators use
inside is added at their calls (kernels/scratch.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...instrument.constants import MIB
from ...kernels.scratch import scratch_of
from ..config.schema import Config
from ..data.batches import Batch
from ..data.examples import Example
from ..loop.snapshots import N_SNAPSHOTS
from ..model.load import autocast
from .fake_model import FakeModel

# Moments an optimizer keeps of every trained value; by the first part of its name.
MOMENTS = {"adamw": 2, "adam": 2, "ademamix": 3, "lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0, "adafactor": 0}
# bitsandbytes keeps the states of smaller tensors in float32, and one float32 scale for each block of 8-bit values.
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
# What the libraries take once training has begun: modules imported late, thread pools, packed GEMM operands.
CPU_LIBRARIES = 110 * MIB
# Gaps in glibc's heap, which serves blocks of up to 32 MiB and gives little back in between: at most so many bytes, and
# so many times the step's own; without and with gradient checkpointing, which takes and frees a layer's tensors once
# more. Fitted to the runs of benchmarks/memory.py: 20 to 180 MiB in four, 210 to 375 in the two with checkpointing.
# Where gaps come to lie depends on when threads free, so on what else the machine does; with
# MALLOC_MMAP_THRESHOLD_=262144 there are none, and a run takes the same bytes again to 0.2%. The CPU alone: CUDA's
# allocator counts live bytes.
HEAP_GAPS = {False: (170 * MIB, 1.4), True: (310 * MIB, 2.9)}
# cuBLAS's workspace, which comes from torch's allocator: 32 MiB from Hopper on, 8.1 before.
CUDA_WORKSPACE = {True: 32 * MIB, False: 8 * MIB + (128 << 10)}
# Share of what is free that a run may take: fragmentation, and what else the machine does.
USABLE = 0.92


class Meter(TorchDispatchMode):
    """Follows the storages that operations make while it is active.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive at once, with the fused operators' scratch.
        room: what operators took and never give back, by kind; not among the others.
        loss: scratch, room and result of the loss operator.
    """

    def __init__(self, known: Sequence[torch.Tensor]):
        super().__init__()
        self.live = self.peak = self.loss = 0
        self.room: dict[str, int] = {}
        self._seen: dict[int, weakref.ref] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.live
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        taken = scratch_of(func.name().partition(".")[0], args)
        self.live += taken.waits
        self.peak = max(self.peak, self.live + taken.inside)
        self.room = {kind: max(self.room.get(kind, 0), taken.stays.get(kind, 0)) for kind in self.room | taken.stays}
        if "cross_entropy" in func.name() and "backward" not in func.name():
            self.loss = max(self.loss, self.live - before + taken.inside + taken.stays.get("logits", 0))
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._seen or key in self._known:
            return

        def released(_: object) -> None:
            del self._seen[key]
            self.live -= n_bytes

        self._seen[key] = weakref.ref(storage, released)
        self.live += n_bytes


@dataclass(frozen=True)
class Shape:
    """A micro-batch: the tokens of each row, and how many of all are targets."""

    lengths: tuple[int, ...]
    n_supervised: int

    @property
    def n_rows(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Of the longest row."""
        return max(self.lengths)


def longest(units: Sequence[Sequence[Example]], n_units: int) -> list[Example]:
    """The rows of the longest units, longest first; where there are fewer they are repeated.

    Args:
        units: single rows, or bins of rows.
        n_units: how many.
    """
    ordered = sorted(units, key=lambda unit: (-sum(len(example.input_ids) for example in unit), unit[0].row))
    return [example for i in range(n_units) for example in ordered[i % len(ordered)]]


def shape_of(examples: Sequence[Example]) -> Shape:
    """The shape of a micro-batch of these rows."""
    lengths = tuple(len(example.input_ids) for example in examples)
    return Shape(lengths, sum(example.n_supervised for example in examples))


def batch_of(shape: Shape, padding_free: bool, device: torch.device, config: Config | None = None) -> Batch:
    """A micro-batch of this shape, all zeros.

    Args:
        config: of a classifier.
    """

    def zeros(*size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    lengths, n_tokens = shape.lengths, sum(shape.lengths)
    targets = zeros(shape.n_supervised), zeros(shape.n_supervised)
    if config is not None and config.is_classifier:
        ids = zeros(len(lengths), shape.length)
        single = config.model.problem_type in ("auto", "single_label_classification")
        labels = targets[1] if single else zeros(len(lengths), len(config.data.labels or "1"), dtype=torch.float32)
        return Batch(ids, targets[0], labels, (), n_tokens, attention_mask=torch.ones_like(ids))
    if not padding_free:
        return Batch(zeros(len(lengths), shape.length), *targets, (), n_tokens)
    starts = zeros(len(lengths) + 1, dtype=torch.int32)
    return Batch(zeros(1, n_tokens), *targets, (), n_tokens, lengths, zeros(1, n_tokens), starts)


@dataclass(frozen=True)
class Step:
    """Bytes of one forward and backward beyond the weights, gradients and optimizer states.

    Attributes:
        kept: alive when the forward ends, the loss's own gradient included.
        peak: the most alive at once, but for the room.
        room: memory for the logits, and for matrices in planes of bf16, on the CPU, which stays with the process.
        loss: of all that, what projection to the vocabulary and loss take at once.
    """

    kept: int
    peak: int
    room: int
    loss: int


def run_step(fake: FakeModel, shape: Shape) -> Step:
    """Runs a micro-batch of this shape on the fake.

    Raises:
        RuntimeError: the model reads values of its tensors.
    """
    device = fake.device
    with fake.mode:
        for parameter in fake.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        batch = batch_of(shape, fake.loss.padding_free, device, fake.config)
        with Meter(_held(fake)) as meter:
            with autocast(fake.config, device):
                loss = fake.loss(batch)[0]
            kept = meter.live
            loss.backward()
            del loss
    return Step(kept, meter.peak, sum(meter.room.values()), meter.loss)


def _held(fake: FakeModel) -> list[torch.Tensor]:
    """Every tensor that is there before a step."""
    found: list[torch.Tensor] = [*fake.model.buffers()]
    for parameter in fake.model.parameters():
        found.append(parameter)
        found += [parameter.grad] if parameter.grad is not None else []
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            inner = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
            found += [state.absmax, state.code, *inner]
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, at the peak of a step."""

    weights: dict[str, int]
    lora: int
    gradients: int
    optimizer: int
    copies: int
    step: Step
    overhead: int

    @property
    def total(self) -> int:
        held = sum(self.weights.values()) + self.lora + self.gradients + self.optimizer
        return held + self.copies + self.step.peak + self.step.room + self.overhead


def predict(fake: FakeModel, shape: Shape) -> Memory:
    """What a run whose largest micro-batch has this shape needs."""
    states = optimizer_bytes(fake.config.training.optim, fake.trained)
    lora = 4 * fake.n_trained
    step = run_step(fake, shape)
    copies = N_SNAPSHOTS * (lora + states) if fake.device.type == "cpu" else 0
    return Memory(fake.weights, lora, lora, states, copies, step, overhead(fake, step))


def optimizer_bytes(name: str, trained: Sequence[torch.Size]) -> int:
    """Bytes of the states that an optimizer, by TrainingArguments' name, keeps of these float32 parameters."""
    plain = name.removeprefix("paged_")
    moments = next((n for prefix, n in MOMENTS.items() if plain.startswith(prefix)), 2)
    total = 0
    for shape in trained:
        n = shape.numel()
        if plain.startswith("adafactor"):  # one row and one column
            total += 4 * sum(shape)
        elif plain.endswith("8bit") and n >= SMALLEST_8BIT:
            total += moments * (n + 4 * -(-n // BLOCK_8BIT))
        else:
            total += 4 * moments * n
    return total


def overhead(fake: FakeModel, step: Step) -> int:
    """Bytes that libraries and allocator take on the device beside the tensors."""
    if fake.device.type != "cuda":
        return CPU_LIBRARIES + heap_gaps(fake, step)
    return CUDA_WORKSPACE[torch.cuda.get_device_capability(fake.device) >= (9, 0)]


def heap_gaps(fake: FakeModel, step: Step) -> int:
    """Bytes of the CPU's heap that no tensor is in at the peak, 0 on CUDA; HEAP_GAPS says why."""
    if fake.device.type == "cuda":
        return 0
    most, share = HEAP_GAPS[fake.config.training.gradient_checkpointing]
    return min(most, int(share * step.peak))


def available(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def largest_batch(needed: Callable[[int], int], free: int, n_rows: int) -> int:
    """The largest batch that fits, 0 if none does.

    Args:
        needed: bytes for so many rows in a micro-batch; it grows with them, all but linearly.
        free: bytes that may be taken.
        n_rows: rows there are: a larger batch makes no sense.
    """
    fits, at_fits = 1, needed(1)
    if at_fits > free:
        return 0
    too_large, at_too_large = n_rows, needed(n_rows)
    if at_too_large <= free:
        return n_rows
    while too_large - fits > 1:
        line = fits + (free - at_fits) * (too_large - fits) // (at_too_large - at_fits)
        guess = min(max(line, fits + 1), too_large - 1)
        size = needed(guess)
        if size <= free:
            fits, at_fits = guess, size
        else:
            too_large, at_too_large = guess, size
    return fits
