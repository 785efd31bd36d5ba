"""The passes over dY and X by themselves: squares of every example and sums against float64 over the operands as
rounded, and what they launch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from lora_train.kernels.backend import triton_on_cpu
from lora_train.kernels.lora_linear import launch, tiles
from lora_train.kernels.lora_linear.group import NO_DROPOUT, Dropout, Examples, Group
from lora_train.kernels.lora_linear.read import launches
from lora_train.kernels.lora_linear.read.launches import Sides, add_squares, grad, read, total_gradients
from lora_train.kernels.statistics.pending_rows import PendingRows, Rows
from torch import Tensor

from ...helpers import DTYPES
from ..lora_layer import drawn_by_triton


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An fp32 operand of a product beside one of `dtype`, in float64: to the 11 bits of TF32 if that has 16."""
    if dtype == torch.float32:
        return x.double()
    bits = (x.view(torch.int32) + 0x1000) & -0x2000
    return bits.view(torch.float32).double()


def kept(x: Tensor, dropout: Dropout) -> Tensor:
    """What dropout leaves of X, in float64."""
    return torch.where(drawn_by_triton(x, dropout), x.double(), 0.0)


def random_examples(rng: random.Random) -> list[int]:
    kind = rng.randrange(4)
    if kind == 0:
        return [rng.choice([1, 16, 31])] * rng.randint(1, 6)
    if kind == 1:
        return [rng.randint(1, 200)]
    return [rng.choice([0, 1, 16, 17, 100, rng.randint(1, 60)]) for _ in range(rng.randint(1, 6))] or [1]


@pytest.mark.parametrize("on_tensor_cores", [True, False], ids=["", "sm_75"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_squares_and_sums_over_the_operands_as_rounded(
    triton_device: str, dtype: torch.dtype, seed: int, on_tensor_cores: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tiles, "has_tensor_cores", lambda device: on_tensor_cores)
    of_operands = dtype if on_tensor_cores else torch.float32
    rng = random.Random(f"{dtype} {seed}")
    lengths = random_examples(rng)
    starts, m = (0, *accumulate(lengths)), sum(lengths)
    n = rng.randint(1, 4)
    k, cols = rng.choice([1, 48, 130]), [rng.choice([1, 16, 70, 140]) for _ in range(n)]
    ranks = tuple(rng.choice([1, 4, 16, 24, 40]) for _ in range(n))
    dropout = Dropout(torch.tensor([seed], device=triton_device), 0.3) if rng.random() < 0.5 else NO_DROPOUT
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(triton_device)

    x, dys = randn(m, k).to(dtype), [randn(m, c).to(dtype) for c in cols]
    h, lora_A = randn(m, sum(ranks)), [randn(r, k) for r in ranks]
    lora_B = [randn(c, r) for c, r in zip(cols, ranks, strict=True)]
    g, scales = torch.empty_like(h), [2.0 / (i + 1) for i in range(n)]
    examples = Examples(starts, torch.full((len(lengths), 2 * n), -1.0, dtype=torch.float64, device=triton_device))
    with triton_on_cpu() if triton_device == "cpu" else torch.enable_grad():
        db = grad(dys, Sides(h, lora_B, ranks, scales), g, False, examples)
        da = read([x], Sides(g, None, ranks, [1.0]), dropout, False, examples)
        both, pending = total_gradients(da, db, lora_A, lora_B, False), PendingRows()
        assert da.pieces is not None
        assert db.pieces is not None
        assert examples.squares is not None
        add_squares(pending, (examples.squares, 0), (da.pieces, db.pieces), both.cut)
        pending.flush()
        left, x_kept = rounded(g, of_operands), kept(x, dropout)
    hs = [part.double() * s for part, s in zip(rounded(h, of_operands).split(list(ranks), 1), scales, strict=True)]
    terms = [
        *((part, x_kept) for part in left.split(list(ranks), 1)),
        *((dy.double(), own) for dy, own in zip(dys, hs, strict=True)),
    ]
    for column, ((one, other), value) in enumerate(zip(terms, both.values, strict=True)):
        allowed = one.abs().t() @ other.abs()
        assert ((value - one.t() @ other).abs() <= 2**-23 * (len(starts) + 16) * allowed).all()
        for e, (start, stop) in enumerate(pairwise(starts)):
            a, b = one[start:stop], other[start:stop]
            expected, magnitude = (a.t() @ b).square().sum(), (a.abs().t() @ b.abs()).square().sum()
            assert (examples.squares[e, column] - expected).abs() <= 1e-6 * magnitude, (column, e, lengths)


def launched(monkeypatch: pytest.MonkeyPatch, examples: Examples | None, n_projections: int) -> Counter[str]:
    """Launches of a forward and a backward that leave rows and squares to a later flush."""
    names: Counter[str] = Counter()

    def count(module: Any) -> None:
        real = module.launch

        def counting(kernel: Any, *rest: Any, **options: Any) -> None:
            names[kernel.fn.__name__] += 1
            real(kernel, *rest, **options)

        monkeypatch.setattr(module, "launch", counting)

    for module in (launch, launches):
        count(module)
    x, weights = torch.randn(40, 16), [torch.randn(24, 16) for _ in range(n_projections)]
    lora_A, lora_B = [torch.randn(4, 16) for _ in weights], [torch.randn(24, 4) for _ in weights]
    group = Group(weights, [None] * n_projections, lora_A, lora_B, [1.0] * n_projections, NO_DROPOUT, examples)
    rows = Rows(torch.zeros(2 + 4 * n_projections, 9, dtype=torch.float64), PendingRows())
    with triton_on_cpu():
        _, h = launch.forward(x, group, rows)
        launch.backward([torch.randn(40, 24) for _ in weights], x, h, group, True, rows)
    monkeypatch.undo()
    return names


@pytest.mark.parametrize("n_projections", [1, 3, 6])
def test_squares_take_no_launch_of_their_own(monkeypatch: pytest.MonkeyPatch, n_projections: int):
    squares = torch.empty(3, 2 * n_projections, dtype=torch.float64)
    without = launched(monkeypatch, None, n_projections)
    assert without == launched(monkeypatch, Examples([0, 5, 7, 40], squares), n_projections)
    assert n_projections > 4 or without.total() == 7


@pytest.mark.parametrize("starts", [[0, 5], [0, 5, 41], [0]])
def test_starts_of_other_rows_are_refused(starts: Sequence[int]):
    with triton_on_cpu(), pytest.raises(ValueError, match="starts do not go from 0 to the rows of x, 40"):
        read([torch.randn(40, 16)], Sides(torch.randn(40, 4), None, (4,), [1.0]), NO_DROPOUT, False, Examples(starts))
