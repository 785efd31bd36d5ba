"""What a GPU would be asked to do, seen without one; and that each fault put back, or planted, is seen.

In processes of their own: this one's kernels are interpreted (tests/conftest.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..copied import copied

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="benchmarks.gpu runs the same on the GPU itself")
ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: object, cwd: Path = ROOT, path: str = "") -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1500, check=False)


def test_whole_runs_compile_early_launch_little_and_never_wait(tmp_path: Path):
    """Training, evaluation, collapse, replay and the callback on an H100; every variant compiles. On a T4 and an A100
    `make gpu-dry` does it.
    """
    done = python("-m", "benchmarks.fake_cuda", "--chip", 90, "--compile", "--json", tmp_path / "seen.json")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert json.loads((tmp_path / "seen.json").read_text()) == {"problems": []}
    print(done.stdout)


BY_TRITON = ("kernels/launcher.py", "    usual = addresses", "    usual = False and addresses")
UNCHECKED = ("kernels/launcher.py", "        _check(kernel, len(tensors) + len(sizes), free)\n", "")

# Each as it was: (file, what stands there now, what stood there), arguments, what is to be said of it.
PUT_BACK = {
    "one row cannot be compiled": (
        [
            BY_TRITON,
            UNCHECKED,
            (
                "kernels/lora_linear/kernels.py",
                '@jit(do_not_specialize=["n_rows", "blocks_per_split"])',
                '@jit(do_not_specialize=["blocks_per_split"])',
            ),
            (
                "kernels/lora_linear/kernels.py",
                "n_rows, n_cols = tl.cast(n_rows, tl.int64), tl.cast(n_cols, tl.int64)\n    row_mask, rank_mask",
                "n_rows, n_cols = n_rows.to(tl.int64), tl.cast(n_cols, tl.int64)\n    row_mask, rank_mask",
            ),
        ],
        ("--run", "callback", "--compile"),
        "sm_90 _down_kernel does not compile",
    ),
    "an index that is a list": (
        [
            (
                "trainer/loop/optim.py",
                "(gradient_rows[:, N_NAN] + gradient_rows[:, N_INF]).sum()",
                "gradient_rows[:, [N_NAN, N_INF]].sum()",
            )
        ],
        ("--run", "llama"),
        "aten::index reads a tensor of the host, [2]: trainer/loop/optim.py",
    ),
    "batches that compile": (
        [
            BY_TRITON,
            UNCHECKED,
            (
                "kernels/lora_linear/read/grad.py",
                '@jit(do_not_specialize=["n_rows", "rows_per_split", "first_bad", "n_examples"])',
                "@jit",
            ),
        ],
        ("--run", "llama"),
        "compiled after the first step: lora_train.kernels.lora_linear.read.grad._grad_kernel",
    ),
    "an argument that is specialised unseen": (
        [
            (
                "kernels/lora_linear/read/grad.py",
                '@jit(do_not_specialize=["n_rows", "rows_per_split", "first_bad", "n_examples"])',
                "@jit",
            ),
        ],
        ("--run", "callback"),
        "_grad_kernel: n_rows varies with the batch",
    ),
    "launches that need not be": (
        [
            (
                "kernels/lora_linear/launch.py",
                "min(start + MAX_GROUP, n)) for start in range(0, n, MAX_GROUP)",
                "start + 1) for start in range(n)",
            )
        ],
        ("--run", "callback"),
        "more launches than the budget",
    ),
}


@pytest.mark.parametrize("fault", PUT_BACK)
def test_a_fault_put_back_is_seen(fault: str, tmp_path: Path):
    changes, arguments, expected = PUT_BACK[fault]
    copied(tmp_path, changes, "benchmarks")
    done = python("-m", "benchmarks.fake_cuda", "--chip", 90, *arguments, cwd=tmp_path, path=str(tmp_path))
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert expected in done.stdout, done.stdout[-3000:]


PLANTS = """
import sys
import torch
from benchmarks.fake_cuda import fake_cuda
from benchmarks.fake_cuda.waits import watched

device = torch.device("cpu")
x = torch.arange(6.0).view(2, 3)
kinds = {
    "Tensor.item reads a number": lambda: x.sum().item(),
    "Tensor.__bool__ reads a number": lambda: bool(x.sum() > 0),
    "Tensor.tolist reads a number": lambda: x.tolist(),
    "Tensor.cpu reads a number": lambda: x.cpu(),
    "aten::nonzero needs values": lambda: (x > 1).nonzero(),
    "aten::index by a boolean mask": lambda: x[x > 1],
    "aten::index reads a tensor of the host": lambda: x[:, [0, 2]],
    "tensor copies values of the host": lambda: torch.tensor([1.0, 2.0], device=device),
    "as_tensor copies values of the host": lambda: torch.as_tensor(True, device=device),
    "new_tensor copies values of the host": lambda: x.new_tensor(3),
    "Tensor.to copies memory of the host": lambda: torch.from_numpy(numpy.ones(3)).to(device),
    "aten::add reads a tensor of the host": lambda: x + torch.from_numpy(numpy.ones(3)),
    "a copy to the GPU from memory not pinned": lambda: x[0].copy_(torch.from_numpy(numpy.ones(3))),
    "a copy to the host that is waited for": lambda: torch.from_numpy(numpy.ones(3)).copy_(x[0]),
}
fine = {
    "from pinned memory": lambda: torch.from_numpy(numpy.ones(3)).pin_memory().to(device, non_blocking=True),
    "a number of the host": lambda: x * torch.tensor(2.0),
    "made there": lambda: torch.zeros(3, device=device) + x,
    "an index that is there": lambda: x.index_select(0, torch.zeros(1, dtype=torch.int64, device=device)),
}
import numpy
missed = []
with fake_cuda(90):
    for kind, plant in kinds.items():
        with watched() as waits:
            plant()
        if not any(fault.startswith(kind) for fault in waits.faults):
            missed.append((kind, waits.faults))
        with watched() as waits:  # in a backward pass too
            y = (x.clone().requires_grad_() * 2)
            y.register_hook(lambda grad: None if plant() is None else None)
            y.sum().backward()
        if not any(fault.startswith(kind) for fault in waits.faults):
            missed.append(("backward: " + kind, waits.faults))
    for kind, plant in fine.items():
        with watched() as waits:
            plant()
        if waits.faults:
            missed.append(("false alarm: " + kind, waits.faults))
for one in missed:
    print(*one)
sys.exit(len(missed))
"""


def test_every_kind_of_wait_is_seen_and_nothing_else():
    done = python("-c", PLANTS)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


PLANTED_IN_A_RUN = {
    "a step": ("trainer/loop/train.py", "    totals = forward_backward(components, rows)\n", "    float(totals[0])\n"),
    "an evaluation": (
        "trainer/loop/evaluate.py",
        "                loss_sum, n_correct, losses = _judged(loss, batch, kept, number)\n",
        "                float(loss_sum)\n",
    ),
    "clipping": ("trainer/loop/optim.py", "        divisor = loss_scale.clone()\n", "        float(divisor)\n"),
    "the callback": (
        "instrument/attach/step.py",
        "        facts = torch.stack([",
        "        float(norm)\n        facts = torch.stack([",
    ),
}


@pytest.mark.parametrize("where", PLANTED_IN_A_RUN)
def test_a_wait_planted_there_is_named(where: str, tmp_path: Path):
    file, line, planted = PLANTED_IN_A_RUN[where]
    copied(tmp_path, [(file, line, planted if where == "the callback" else line + planted)], "benchmarks")
    run = "callback" if where == "the callback" else "llama"
    done = python("-m", "benchmarks.fake_cuda", "--chip", 90, "--run", run, cwd=tmp_path, path=str(tmp_path))
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"Tensor.__float__ reads a number: {file}" in done.stdout, done.stdout[-3000:]
