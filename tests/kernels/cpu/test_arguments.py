"""What the C files say of tensors that do not fit: a ValueError that names one, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from lora_train.kernels import cpu

from .calls import C, M, R, X, heads, read

pytestmark = pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")

HALF, GAPS = X.half(), torch.zeros(M, 2 * C)[:, ::2]
SHORT = X[:-1].clone()
TO, LEFT, MATRIX, HEADS = torch.zeros(M, R), torch.zeros(M, R), X[:R].clone(), heads(2)
LSE, ANGLES = torch.zeros(2, 2, 37), torch.zeros(1, 37, 8)


def project(x=X, matrix=MATRIX, to=TO, across=False, factors=None, **more: Any) -> None:
    cpu.read(x, projection=(cpu.Stack([matrix], across, factors), to), **more)


def outer(left=LEFT, into=MATRIX, rows=None, **more: Any) -> None:
    cpu.read(X, outer=(left, cpu.Stack([into], rows=rows)), **more)


def update(x=X, left=LEFT, matrix=MATRIX, stored=X, **more: Any) -> None:
    cpu.update(x, left, cpu.Stack([matrix]), stored, **more)


def attend(*gradients: torch.Tensor, query=HEADS, key=HEADS, out=HEADS, lse=LSE) -> None:
    cpu.attention(cpu.Attention(query, key, key, out, lse), 0.3, gradients)


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "stats dtype": (lambda: cpu.stats(X.double(), True), "x is float64, not float32, float16 or bfloat16"),
    "stats gaps": (lambda: cpu.stats(GAPS, True), "x has gaps"),
    "stats int": (lambda: cpu.stats(X.int(), True), "x has a dtype that no loop takes"),
    "round short": (lambda: cpu.round_with_stats(X, HALF[1:]), "stored has 3312 values, not 3360"),
    "round dtype": (lambda: cpu.round_with_stats(X, X), "stored is float32, not float16 or bfloat16"),
    "round wide": (lambda: cpu.round_with_stats(HALF, HALF), "x is float16, not float32"),
    "norm dims": (lambda: cpu.norm(X[None], X[0], 0.1), "x has 3 dimensions, not 2"),
    "norm weight": (lambda: cpu.norm(X, X[0, 1:], 0.1), "dimension 0 of weight has size 47, not 48"),
    "norm gaps": (lambda: cpu.norm(GAPS, X[0], 0.1), "x has gaps in its last 2 dimensions"),
    "norm dy": (lambda: cpu.norm_backward(SHORT, X, X[0], X[:, 0].clone()), "dimension 0 of dy has size 69, not 70"),
    "norm rstd": (lambda: cpu.norm_backward(X, X, X[0], X[0]), "dimension 0 of rstd has size 48, not 70"),
    "gate": (lambda: cpu.gate(X, SHORT), "u has 3312 values, not 3360"),
    "gate dtype": (lambda: cpu.gate_backward(X, HALF, X), "g is float16, not float32"),
    "rotate": (lambda: cpu.rotate(HEADS, ANGLES[:, :-1], ANGLES, False), "dimension 1 of cos has size 36, not 37"),
    "rotate wide": (
        lambda: cpu.rotate(HEADS[..., :4], ANGLES, ANGLES, False), r"cos \[1, S, 8\] does not fit x \[2, heads, S, 4\]",
    ),
    "read to": (lambda: project(to=TO[1:]), "dimension 0 of to has size 69, not 70"),
    "read rank": (lambda: project(to=TO[:, 1:]), "dimension 1 of to has size 4, not 5"),
    "read matrix": (lambda: project(matrix=MATRIX[:, 1:].clone()), "dimension 1 of R has size 47, not 48"),
    "read across": (lambda: project(across=True), "dimension 0 of R has size 5, not 48"),
    "read dtype": (lambda: project(matrix=MATRIX.half()), "R is float16, not float32"),
    "read factors": (lambda: project(factors=[1.0, 2.0]), "a stack of 1 matrices has another number of factors or"),
    "read wide": (lambda: project(wide=SHORT), "dimension 0 of wide has size 69, not 70"),
    "read row": (lambda: project(row=numpy.zeros(8)), r"a row is no float64 \[9\]"),
    "read row dtype": (lambda: project(row=numpy.zeros(9, numpy.int64)), r"a row is no float64 \[9\]"),
    "outer left": (lambda: outer(left=LEFT[:, 1:]), "dimension 1 of left has size 4, not 5"),
    "outer row": (lambda: outer(rows=[numpy.zeros(10)]), r"a row is no float64 \[9\]"),
    "outer rank": (
        lambda: cpu.read(X, projection=(cpu.Stack([MATRIX]), TO), outer=(LEFT, cpu.Stack([MATRIX, MATRIX]))),
        "G has rank 10, not 5",
    ),
    "update left": (lambda: update(left=LEFT[1:]), "dimension 0 of left has size 69, not 70"),
    "update x": (lambda: update(x=HALF), "x is float16, not float32"),
    "update stored": (lambda: update(stored=HALF[1:]), "dimension 0 of stored has size 69, not 70"),
    "update wide": (lambda: update(stored=X.clone()), "stored is float32, not float16 or bfloat16"),
    "attention out": (lambda: attend(out=HEADS[:, :, 1:]), "dimension 2 of out has size 36, not 37"),
    "attention lse": (lambda: attend(lse=LSE[:, 1:]), "dimension 1 of lse has size 1, not 2"),
    "attention dtype": (lambda: attend(key=HEADS.half()), "key is float16, not float32"),
    "attention heads": (lambda: attend(key=heads(3)), "2 heads of 16 values do not fit 3 of key and value"),
    "attention gradient": (
        lambda: attend(HEADS, HEADS, HEADS, HEADS[1:]), "dimension 0 of dvalue has size 1, not 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_that_does_not_fit_is_named(name: str):
    call, message = CASES[name]
    held = cpu.scratch_bytes()
    with pytest.raises(ValueError, match=message):
        call()
    assert cpu.scratch_bytes() == held


@pytest.mark.skipif(not cpu.TILES, reason="this chip multiplies no bf16 in tiles")
def test_a_product_that_does_not_fit_is_named():
    out = torch.zeros(M, R)
    for weight, to, bias, message in (
        (HALF[:R, 1:], out, None, r"weight \[5, 47\] does not fit x \[70, 48\]"),
        (X[:R], out, None, "weight is float32, not float16 or bfloat16"),
        (HALF[:R], out[1:], None, "dimension 0 of out has size 69, not 70"),
        (HALF[:R], out, X[0, :4], "dimension 0 of bias has size 4, not 5"),
    ):
        with pytest.raises(ValueError, match=message):
            cpu.product(HALF, weight, to, transposed=True, bias=bias)


def test_what_is_no_tensor_is_a_type_error():
    with pytest.raises(TypeError):
        cpu.exponents(3)  # type: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        cpu.read(X, row=3)  # type: ignore[reportArgumentType]


def test_strides_of_one_row_do_not_matter():
    """Those of a single row can be anything; a slice of columns has its own."""
    one = read(X[:1])
    assert torch.equal(read(X.as_strided((1, C), (7, 1)))[0], one[0])
