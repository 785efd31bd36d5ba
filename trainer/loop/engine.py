"""Devices and processes, on Accelerate with its mixed precision off: precision and loss scaling are ours.

The model is not wrapped. LoRA gradients are a few megabytes: one flat all-reduce a step sums them in a fixed
order and leaves every micro-batch's own gradient visible before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..config.schema import Config
from ..data.examples import Example
from ..errors import UserError, problem


def check_hardware(config: Config, device: torch.device) -> None:
    """Asks whether the chip can do what the configuration wants.

    Raises:
        UserError: bf16 on a chip without it.
    """
    if config.training.bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(problem("config.no_bf16", chip=torch.cuda.get_device_name(device)))


class PeerLost(RuntimeError):
    """Another process of the run is gone."""


class OutOfMemory(Exception):
    """A batch did not fit; adapter and optimizer are those before it.

    Attributes:
        examples: its rows.
        evaluating: whether it was a batch of an evaluation.
    """

    def __init__(self, examples: Sequence[Example], evaluating: bool):
        super().__init__()
        self.examples, self.evaluating = examples, evaluating


@contextmanager
def fits(examples: Sequence[Example], evaluating: bool = False) -> Iterator[None]:
    """Tells a batch that does not fit into memory from other trouble: torch's allocator on the CPU has no class of its
    own, and the compiled loops raise MemoryError.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if out_of_memory or "DefaultCPUAllocator" in str(error):
            raise OutOfMemory(examples, evaluating) from error
        raise


@contextmanager
def _together() -> Iterator[None]:
    """What the backends raise when another process is gone, by one name."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error)) from error


class Engine:
    """The processes of a run.

    Attributes:
        device: of this process.
        rank: of this process.
        world_size: number of processes.
        is_main: whether this process writes files and talks to the user.
    """

    def __init__(self) -> None:
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process

    @property
    def lacks_processes(self) -> bool:
        """Whether a launcher prepared for several processes and started one: accelerate's does so with --cpu."""
        return self.world_size == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces float32 tensors by their sums over all processes, in one message."""
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _together():
            total = self._accelerator.reduce(flat, reduction="sum")
        assert isinstance(total, torch.Tensor)
        for tensor, part in zip(tensors, total.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of every process, stacked: [world_size, ...]."""
        with _together():
            gathered = self._accelerator.gather(tensor[None])
        assert isinstance(gathered, torch.Tensor)
        return gathered

    def gather_objects(self, value: Any) -> list[Any]:
        """A plain value of every process, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        with _together():
            return list(gather_object([value]))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process. With several processes the host waits for the answer."""
        if self.world_size == 1:
            return flag
        total = torch.tensor([float(flag)], device=self.device)
        self.sum_([total])
        return bool(total.item())

    def same_everywhere(self, tensors: Sequence[torch.Tensor]) -> None:
        """Makes every process hold rank 0's values."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), src=0)

    def barrier(self) -> None:
        """Waits for all processes."""
        with _together():
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Ends the process group."""
        self._accelerator.end_training()
