"""Predicted bytes of a LoRA linear, exactly: against torch's recorded allocations with what the C files count, and on a
GPU that is a stand-in.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch
from lora_train.kernels import cpu
from lora_train.kernels.backend import StandIn, standing_in
from lora_train.kernels.frozen.nf4 import NF4Weight
from lora_train.kernels.ledger import Ledger
from lora_train.kernels.lora_linear import launch
from lora_train.kernels.lora_linear.group import NO_DROPOUT, Dropout, Examples, Group
from lora_train.kernels.lora_linear.ops import operands
from lora_train.kernels.lora_linear.read import launches, spans
from lora_train.kernels.lora_linear.scratch import backward_on_gpu, forward_on_gpu
from lora_train.kernels.scratch import scratch_of
from lora_train.kernels.statistics.pending_rows import PendingRows, Rows
from lora_train.kernels.statistics.reduce import N_FIELDS

from ..helpers import DTYPES
from ..recorder import inside

MIB = 1 << 20
RANKS = (1, 4, 8, 16, 64, 128, 256)


@pytest.fixture(params=["C", "C in tiles", "ATen"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which loops compute."""
    if request.param == "C in tiles" and not cpu.TILES:
        pytest.skip("this chip multiplies no bf16 in tiles")
    if request.param == "ATen":
        monkeypatch.setattr(cpu, "AVAILABLE", False)
    elif not cpu.AVAILABLE:
        pytest.skip("the C extension was not built")
    monkeypatch.setattr(cpu, "TILES", request.param == "C in tiles")
    return request.param


class Case(NamedTuple):
    """A call of a group, and its backward."""

    x: torch.Tensor
    group: Group
    grads: list[torch.Tensor]
    with_stats: bool
    needs_dx: bool
    starts: tuple[int, ...] = (0,)


def random_case(rng: random.Random, most_rows: int, largest_group: int) -> Case:
    """Any ranks from 1 to 256, columns to 300, dtypes of X and W, with and without bias, dropout and statistics."""
    m = rng.choice([1, 31, 32, 64, most_rows, int(most_rows ** rng.random())])
    k, n_projections = rng.choice([1, 16, rng.randint(2, 300)]), rng.randint(1, largest_group)
    cols = [rng.choice([1, 16, rng.randint(1, 300)]) for _ in range(n_projections)]
    ranks = [rng.choice([*RANKS, rng.randint(1, 256)]) for _ in cols]
    dtype = rng.choice(DTYPES)
    frozen = rng.choice([dtype, dtype, torch.float32, torch.bfloat16])
    p = rng.choice([0.0, 0.1])
    group = Group(
        [torch.randn(n, k).to(frozen) for n in cols],
        [torch.randn(n).to(dtype) if rng.random() < 0.5 else None for n in cols],
        [torch.randn(r, k) for r in ranks],
        [torch.randn(n, r) for n, r in zip(cols, ranks, strict=True)],
        [2.0] * n_projections,
        Dropout(torch.tensor([3]), p) if p else NO_DROPOUT,
    )
    grads = [torch.randn(m, n).to(dtype) for n in cols]
    borders = sorted(rng.choices(range(m + 1), k=rng.choice([0, 1, 5, 40])))
    starts = rng.choice([(0,), (0, *borders, m), tuple(range(0, m + 1, m // rng.choice([1, m])))])
    return Case(torch.randn(m, k).to(dtype), group, grads, rng.random() < 0.5, rng.random() < 0.8, starts)


def check(case: Case) -> int:
    """That forward and backward take what is predicted; the bytes of backward."""
    x, group, grads, with_stats, needs_dx, starts = case
    *tensors, formats, scalings, p = operands(group)
    slot = torch.zeros(2 + 4 * len(grads), N_FIELDS, dtype=torch.float64) if with_stats else None
    squares = (
        torch.zeros(len(starts) - 1, 2 * len(grads), dtype=torch.float64) if len(starts) > 1 and with_stats else None
    )
    forward: Any = (x, *tensors, slot, squares, formats, scalings, p, list(starts))
    taken, (_, h, _) = inside(lambda: torch.ops.lora_train.lora_linear(*forward))
    about = f"M {len(x)} K {x.shape[1]} R {h.shape[1]} {x.dtype}, p {p}, statistics {with_stats}"
    about += f", {len(starts) - 1} examples"
    assert scratch_of("lora_train::lora_linear", forward).inside == taken, about
    weights, _, *lora = tensors
    wanted = needs_dx, with_stats, 0 if squares is None else squares.shape[1]
    backward: Any = (grads, x, h, weights, *lora, formats, scalings, p, list(starts), *wanted)
    taken, _ = inside(lambda: torch.ops.lora_train.lora_linear_backward(*backward))
    assert scratch_of("lora_train::lora_linear_backward", backward).inside == taken, about
    return taken


@pytest.mark.parametrize("seed", range(4))
def test_forward_and_backward_take_what_is_predicted(mode: str, seed: int):
    rng = random.Random(seed)
    for _ in range(12):
        check(random_case(rng, 4096, 6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_ranks_have_fewer_shares(mode: str, dtype: torch.dtype):
    """4 MiB a share at rank 256: OUTER_BYTES holds sixteen, where there would be 32."""
    k, rank = 4096, 256
    group = Group([torch.randn(8, k).to(dtype)], [None], [torch.randn(rank, k)], [torch.randn(8, rank)], [1.0])
    taken = check(Case(torch.randn(2048, k).to(dtype), group, [torch.randn(2048, 8).to(dtype)], False, False))
    if mode != "ATen":
        assert 64 * MIB < taken < 72 * MIB


def test_a_gradient_that_is_not_dense_is_copied(mode: str):
    case = random_case(random.Random(5), 100, 1)
    dy = torch.randn(case.grads[0].shape[1] + 3, len(case.x)).to(case.x.dtype).t()[:, 3:]
    check(case._replace(grads=[dy]))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("n", "k"), [(48, 64), (30, 50)])
def test_packed_weights_are_decoded_one_by_one(mode: str, nested: bool, n: int, k: int):
    """At most two of them are there at once."""
    weights = [packed(n, k, nested) for _ in range(4)]
    for dtype in DTYPES:
        lora = [torch.randn(4, k) for _ in weights], [torch.randn(n, 4) for _ in weights]
        group = Group(weights, [None] * 4, *lora, [1.0] * 4)
        check(Case(torch.randn(40, k).to(dtype), group, [torch.randn(40, n).to(dtype)] * 4, True, True))


def packed(n: int, k: int, nested: bool) -> NF4Weight:
    functional = pytest.importorskip("bitsandbytes.functional")
    data, state = functional.quantize_4bit(torch.randn(n, k), quant_type="nf4", compress_statistics=nested)
    inner = (state.state2.absmax, state.state2.code, state.offset) if nested else (None, None, None)
    return NF4Weight(data, state.absmax, state.code, state.blocksize, *inner)


@pytest.mark.parametrize("chip", [StandIn(132, (9, 0)), StandIn(40, (7, 5))], ids=str)
def test_a_gpu_takes_what_is_predicted(chip: StandIn, monkeypatch: pytest.MonkeyPatch):
    """The launchers and allocations of a GPU, on CPU tensors, but for the launches; and partials wait for those who
    write rows.
    """
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # its copies are not a GPU's
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    for module in (launch, launches):
        monkeypatch.setattr(module, "launch", lambda *_, **__: None)
    rng = random.Random(0)
    with standing_in(chip):
        for _ in range(20):
            check_on_gpu(random_case(rng, 600, 10))


def check_on_gpu(case: Case) -> None:
    """That the launches of forward and backward take what is predicted."""
    x, group, grads, with_stats, needs_dx, starts = case
    with_squares = len(starts) > 1 and with_stats
    squares = torch.empty(len(starts) - 1, 2 * len(grads), dtype=torch.float64) if with_squares else None
    if len(starts) > 1:
        group = group._replace(examples=Examples(starts, squares))
        spans._tables.clear()
        h = torch.zeros(len(x), sum(a.shape[0] for a in group.lora_A))
        launch.backward(grads, x, h, group._replace(examples=Examples(starts)), False, None)  # makes the tables
    slot, pending = torch.zeros(2 + 4 * len(grads), N_FIELDS, dtype=torch.float64), [PendingRows(), PendingRows()]
    rows = [Rows(slot, waiting) if with_stats else None for waiting in pending]
    ledgers = Ledger(), Ledger()
    forward_on_gpu(ledgers[0], x, group, with_stats)
    taken, (_, h) = inside(lambda: launch.forward(x, group, rows[0]))
    backward_on_gpu(ledgers[1], grads, x, group, (needs_dx, with_stats, with_squares))
    taken_back, _ = inside(lambda: launch.backward(grads, x, h, group, needs_dx, rows[1]))
    outs = [slot] if squares is None else [slot, squares]
    found = [(taken, held(pending[0], outs)), (taken_back, held(pending[1], outs))]
    assert [(ledger.scratch().inside, ledger.waits) for ledger in ledgers] == found


def held(pending: PendingRows, outs: list[torch.Tensor]) -> int:
    """Bytes of the partials of rows and squares that are not written yet."""
    kept = [tensor for tensor in pending._kept if all(tensor is not out for out in outs)]
    partials = [tensor for tensor in kept if tensor.dtype == torch.float64]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in partials}
    return sum(storages.values())
