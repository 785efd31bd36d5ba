"""What is measured in a step: Clock its time, Counts what it did. Of the two only Clock takes no time itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

# Runtime calls by which the host waits for a GPU. On a CPU nothing waits; there a synchronisation is a value that
# Python reads out of a tensor, which is where the same code would wait on a GPU. A tolist() is none on a CPU.
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize")
READS = ("aten::_local_scalar_dense",)


def device_name() -> str:
    """`CPU`, or the GPU's name."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def synchronize() -> None:
    """Waits until the device has done what it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib() -> float:
    """Peak memory of this process so far: allocated on the GPU, else its resident set (VmHWM)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


class Clock:
    """Wall and CPU seconds of a step, all threads of this process."""

    def __init__(self) -> None:
        synchronize()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def end(self) -> dict[str, Any]:
        synchronize()
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"wall": wall, "cpu": cpu, "peak_mib": peak_mib()}


class Counts:
    """Host synchronisations and allocations of a step, by torch's profiler, which slows it down."""

    def __init__(self) -> None:
        from torch.profiler import profile

        self._profile: Any = profile(profile_memory=True, acc_events=True)
        self._profile.start()

    def end(self) -> dict[str, Any]:
        import torch

        synchronize()
        self._profile.stop()
        on_gpu = torch.cuda.is_available()
        device = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
        wanted = WAITS if on_gpu else READS
        n_waits, sizes = 0, []
        for event in self._profile.profiler.kineto_results.events():
            n_waits += event.name() in wanted
            if event.name() == "[memory]" and event.nbytes() > 0 and event.device_type() == device:
                sizes.append(event.nbytes())
        return {"synchronisations": n_waits, "allocations": len(sizes), "allocated_mib": sum(sizes) / 2**20}
