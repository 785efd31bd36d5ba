"""The CPU's compiled loops, the C files of this folder, where setup.py could compile them; else ATen serves.

Row layout and meaning of statistics are those of `tensor_stats.py`, the formulas of the rest those of `rms_norm.py`,
`rotary.py`, `gated.py`, `lora_linear/passes.py` and `attention/causal.py`; this file only makes room for results. The C
files ask every tensor for its address, dtype, shape and strides: what does not fit is a ValueError that names it, and
where memory is short there is a MemoryError before anything is written.

Which loops run is decided once, by `cpu_level.py`; all give the same bits, but for `read`, `update`, `attention`,
`product`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ..cpu_level import LEVELS, chosen_level

try:
    from . import _attention, _elementwise, _low_rank, _product, _stats  # type: ignore[reportAttributeAccessIssue]
except ImportError:  # no compiler when the package was installed
    _attention = _elementwise = _low_rank = _product = _stats = None

AVAILABLE = _stats is not None
MODULES = tuple(module for module in (_attention, _elementwise, _low_rank, _product, _stats) if module is not None)
LIMITS: dict[str, dict[str, int]] = {
    module.__name__.rpartition("._")[2]: {name: value for name, value in vars(module).items() if name.isupper()}
    for module in MODULES
}
"""The constants of each C file that say how much scratch memory it takes, by its name and theirs."""
for module in MODULES:
    module.share_scratch(MODULES[-1].scratch())  # one counter for all
BEST = LEVELS[_stats.best_level()] if _stats is not None else None  # what chip, system and compiler allow
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that the loops take


def use(level: str) -> None:
    """Runs the loops of this level, of at most `BEST`, from now on."""
    for module in MODULES:
        module.use_level(LEVELS.index(level))


LEVEL = None if BEST is None else chosen_level(BEST)
if LEVEL is not None:
    use(LEVEL)
TILES = LEVEL == "amx"  # whether `product` has a chip for it


def scratch_bytes() -> int:
    """Bytes that the C files hold beside tensors: between two calls what `product` keeps."""
    return _stats.scratch_bytes()[0] if _stats is not None else 0


def scratch_peak() -> int:
    """Most of them at once since the last `reset_scratch_peak`, as asked for: without what an allocator adds."""
    return _stats.scratch_bytes()[1] if _stats is not None else 0


def reset_scratch_peak() -> None:
    """From now on `scratch_peak` begins at `scratch_bytes`."""
    if _stats is not None:
        _stats.reset_peak()


def fail_after(allocations: int) -> None:
    """For tests: lets the allocation after this many fail, once; none if the number is below 0."""
    assert _stats is not None
    _stats.fail_after(allocations)


def stats(x: Tensor, count_small: bool) -> Tensor:
    """Row of a contiguous fp32, fp16 or bf16 tensor, overflow and underflow null."""
    assert _stats is not None
    row = torch.empty(9, dtype=torch.float64)
    _stats.stats(x, count_small, None, row, torch.get_num_threads())
    return row


def round_with_stats(acc: Tensor, stored: Tensor) -> Tensor:
    """Rounds a contiguous fp32 tensor into `stored` (fp16 or bf16, contiguous); the row of `stored`."""
    assert _stats is not None
    row = torch.empty(9, dtype=torch.float64)
    _stats.stats(acc, True, stored, row, torch.get_num_threads())
    return row


def exponents(x: Tensor) -> Tensor:
    """Counts of the 256 fp32 exponent fields of a contiguous tensor, int64."""
    assert _stats is not None
    counts = torch.empty(256, dtype=torch.int64)
    _stats.exponents(x, counts)
    return counts


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of the rows of a contiguous x [M, K], rounded once to its dtype; 1 / sqrt(mean + eps) of each [M]."""
    assert _elementwise is not None
    y, rstd = torch.empty_like(x), torch.empty(x.shape[0])
    _elementwise.norm(x, weight.float().contiguous(), y, rstd, eps, torch.get_num_threads())
    return y, rstd


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """Gradient of `norm` with respect to x; dy and x contiguous [M, K] of one dtype."""
    assert _elementwise is not None
    dx = torch.empty_like(x)
    _elementwise.norm_backward(dy, x, weight.float().contiguous(), rstd, dx, torch.get_num_threads())
    return dx


def gate(g: Tensor, u: Tensor) -> Tensor:
    """silu(g) u of contiguous tensors of one dtype, rounded once to it."""
    assert _elementwise is not None
    y = torch.empty_like(g)
    _elementwise.gate(g, u, y, torch.get_num_threads())
    return y


def gate_backward(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gate` with respect to g and u; all contiguous."""
    assert _elementwise is not None
    dg, du = torch.empty_like(g), torch.empty_like(g)
    _elementwise.gate_backward(dy, g, u, dg, du, torch.get_num_threads())
    return dg, du


def rotate(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    """Rotates the first R values of every head, or takes that back.

    Args:
        x: [B, heads, S, D], the last dimension dense.
        cos, sin: fp32 [B or 1, S, R], contiguous.

    Returns:
        [B, heads, S, D], a view of a dense [B, S, heads, D].
    """
    assert _elementwise is not None
    batch, heads, positions, cols = x.shape
    y = torch.empty(batch, positions, heads, cols, dtype=x.dtype)
    _elementwise.rotate(x, cos, sin, y, backward, torch.get_num_threads())
    return y.transpose(1, 2)


class Squares(NamedTuple):
    """The examples that lie one behind the other in M rows, and where |G_e|^2 of each goes.

    Attributes:
        starts: int64 [E + 1], where each begins, and M.
        into: float64 [E, columns], rows dense, or None.
        column: which column is the first matrix's of G; the others follow.
    """

    starts: numpy.ndarray
    into: numpy.ndarray | None = None
    column: int = 0


class Stack(NamedTuple):
    """Matrices of low rank, one below the other in R [r, C], the sum of whose ranks is r.

    Attributes:
        matrices: [r_i, C] fp32, contiguous; [C, r_i] if `across`.
        across: whether each is stored transposed.
        factors: what each is multiplied by where it is read; None for 1.
        rows: where the statistics of each go where it is written, float64 [9] or None.
        examples: whose parts of G are added up one by one; None: there is one.
    """

    matrices: Sequence[Tensor]
    across: bool = False
    factors: Sequence[float] | None = None
    rows: Sequence[numpy.ndarray | None] | None = None
    examples: Squares | None = None


def read(
    x: Tensor,
    *,
    projection: tuple[Stack, Tensor] | None = None,
    outer: tuple[Tensor, Stack] | None = None,
    wide: Tensor | None = None,
    row: numpy.ndarray | None = None,
    dropout: tuple[int, float] = (0, 0.0),
) -> bool:
    """One pass over a contiguous x [M, C] in fp32, fp16 or bf16; `low_rank.c` has the formulas.

    Args:
        projection: R, and [M, r] for x R^T, a slice of columns.
        outer: L [M, r], a slice of columns, and G [r, C] for L^T x.
        wide: [M, C] for x in fp32; nothing is written if x is fp32.
        row: float64 [9] for the statistics of x, subnormals and zeros of a 16-bit x only.
        dropout: seed and probability with which values of x count as 0 in both products.

    Returns:
        Whether every value of L is finite.
    """
    assert _low_rank is not None
    wide = None if wide is x else wide
    return _low_rank.read(x, projection, outer, wide, row, *dropout, torch.get_num_threads())


def update(
    x: Tensor,
    left: Tensor,
    right: Stack,
    stored: Tensor,
    *,
    row: numpy.ndarray | None = None,
    dropout: tuple[int, float] = (0, 0.0),
) -> None:
    """Adds left R to a contiguous fp32 x [M, C] and rounds it into `stored`, which is x where that is fp32.

    Args:
        left: [M, r], a slice of columns.
        right: R; its factors are None.
        stored: [M, C], contiguous.
        row: float64 [9] for the statistics of `stored`, overflow and underflow null if it is x.
        dropout: seed and probability with which values of the product are not added.
    """
    assert _low_rank is not None
    into = None if stored is x else stored
    _low_rank.update(x, left, right, into, row, *dropout, torch.get_num_threads())


class Attention(NamedTuple):
    """Tensors of a causal attention, of one dtype, the last dimension dense and a multiple of 16.

    Attributes:
        query, out: [B, heads, S, D].
        key, value: [B, kv_heads, S, D].
        lse: fp32 [B, heads, S], contiguous.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor


def attention(tensors: Attention, scale: float, backward: tuple[Tensor, ...] = ()) -> None:
    """Causal attention into `out` and `lse`, or with them its gradients; `attention/causal.py` has the formulas.

    Args:
        backward: the gradient of `out`, and where those of query, key and value go.
    """
    assert _attention is not None
    _attention.attention(tensors, scale, backward, torch.get_num_threads())


def product(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    transposed: bool,
    bias: Tensor | None = None,
    add: bool = False,
) -> bool:
    """X W^T + bias or X W into `out`, in fp32; only where `TILES`. `product.c` says how.

    Args:
        x: [M, C] in fp32, fp16 or bf16; all rows are dense.
        weight: fp16 or bf16, [N, C] if `transposed`, else [C, N].
        out: fp32 [M, N].
        bias: fp32 [N].
        add: to what is in `out`, instead of a bias.

    Returns:
        False, and `out` is as it was, if X has infinities, NaN or values above 2^127.
    """
    assert _product is not None
    return _product.product(x, weight, transposed, bias, out, add, torch.get_num_threads())
