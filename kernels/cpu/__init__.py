"""The CPU's compiled loops, the C files of this folder, where setup.py could compile them; else ATen serves.

Row layout and meaning of statistics are those of `tensor_stats.py`, the formulas of the rest those of `rms_norm.py`,
`rotary.py`, `gated.py`, `lora_linear/passes.py` and `attention/causal.py`; this file only turns tensors into addresses.
Which loops run is decided once, by `cpu_level.py`; all give the same bits, but for `read`, `update`, `attention`,
`product`.
"""

from collections.abc import Sequence

import torch

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
    module.share_scratch(_stats.scratch())
BEST = LEVELS[_stats.best_level()] if _stats is not None else None  # what chip, system and compiler allow
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as in stats.c


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


def stats(x: torch.Tensor, count_small: bool) -> torch.Tensor:
    """Row of a contiguous fp32, fp16 or bf16 tensor, overflow and underflow null."""
    assert _stats is not None
    row = torch.empty(9, dtype=torch.float64)
    threads = torch.get_num_threads()
    _stats.stats(x.data_ptr(), x.numel(), DTYPES[x.dtype], count_small, 0, row.data_ptr(), threads)
    return row


def round_with_stats(acc: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Rounds a contiguous fp32 tensor into `stored` (fp16 or bf16, contiguous); the row of `stored`."""
    assert _stats is not None
    row = torch.empty(9, dtype=torch.float64)
    _stats.stats(
        acc.data_ptr(),
        acc.numel(),
        DTYPES[stored.dtype],
        True,
        stored.data_ptr(),
        row.data_ptr(),
        torch.get_num_threads(),
    )
    if not acc.numel():  # no values have no address, and stats.c takes no address for nothing to round into
        row[4:6] = 0
    return row


def exponents(x: torch.Tensor) -> torch.Tensor:
    """Counts of the 256 fp32 exponent fields of a contiguous tensor, int64."""
    assert _stats is not None
    counts = torch.empty(256, dtype=torch.int64)
    _stats.exponents(x.data_ptr(), x.numel(), DTYPES[x.dtype], counts.data_ptr())
    return counts


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of the rows of a contiguous x [M, K], rounded once to its dtype; 1 / sqrt(mean + eps) of each [M]."""
    assert _elementwise is not None
    rows, cols = x.shape
    y, rstd = torch.empty_like(x), torch.empty(rows)
    weight, dtype = weight.float().contiguous(), DTYPES[x.dtype]
    addresses = (x.data_ptr(), weight.data_ptr(), y.data_ptr(), rstd.data_ptr())
    _elementwise.norm(*addresses, rows, cols, eps, dtype, torch.get_num_threads())
    return y, rstd


def norm_backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """Gradient of `norm` with respect to x; dy and x contiguous [M, K] of one dtype."""
    assert _elementwise is not None
    dx, weight, dtype = torch.empty_like(x), weight.float().contiguous(), DTYPES[x.dtype]
    addresses = (dy.data_ptr(), x.data_ptr(), weight.data_ptr(), rstd.data_ptr(), dx.data_ptr())
    _elementwise.norm_backward(*addresses, *x.shape, dtype, torch.get_num_threads())
    return dx


def gate(g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """silu(g) u of contiguous tensors of one dtype, rounded once to it."""
    assert _elementwise is not None
    y = torch.empty_like(g)
    addresses = (g.data_ptr(), u.data_ptr(), y.data_ptr())
    _elementwise.gate(*addresses, g.numel(), DTYPES[g.dtype], torch.get_num_threads())
    return y


def gate_backward(dy: torch.Tensor, g: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `gate` with respect to g and u; all contiguous."""
    assert _elementwise is not None
    dg, du = torch.empty_like(g), torch.empty_like(g)
    addresses = (dy.data_ptr(), g.data_ptr(), u.data_ptr(), dg.data_ptr(), du.data_ptr())
    _elementwise.gate_backward(*addresses, g.numel(), DTYPES[g.dtype], torch.get_num_threads())
    return dg, du


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool) -> torch.Tensor:
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
    addresses = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr())
    between_batches = cos.stride(0) if cos.shape[0] > 1 else 0
    _elementwise.rotate(
        *addresses,
        (batch, heads, positions, cols),
        x.stride()[:3],
        cos.shape[-1],
        between_batches,
        backward,
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y.transpose(1, 2)


def read(
    x: torch.Tensor,
    *,
    right: Sequence[tuple[torch.Tensor, float]] = (),
    to: torch.Tensor | None = None,
    left: torch.Tensor | None = None,
    outer: Sequence[tuple[torch.Tensor, int]] = (),
    across: bool = False,
    wide: torch.Tensor | None = None,
    row: int = 0,
    dropout: tuple[int, float] = (0, 0.0),
) -> bool:
    """One pass over a contiguous x [M, C] in fp32, fp16 or bf16; `low_rank.c` has the formulas.

    Args:
        right: [r_i, C] fp32, contiguous, one below the other in R, and what each is multiplied by; [C, r_i] if
            `across`.
        to: [M, sum of r_i] for x R^T, a slice of columns.
        left: [M, sum of r_i], a slice of columns.
        outer: [r_i, C] fp32, contiguous, for left^T x, and the address of its row or 0; [C, r_i] if `across`.
        wide: [M, C] for x in fp32; nothing is written if x is fp32.
        row: address of a float64 [9] for the statistics of x, subnormals and zeros of a 16-bit x only; or 0.
        dropout: seed and probability with which values of x count as 0 in `to` and `outer`.

    Returns:
        Whether every value of `left` is finite.
    """
    assert _low_rank is not None
    side = 1 if across else 0
    return _low_rank.read(
        x.data_ptr(), DTYPES[x.dtype], x.shape, across,
        tuple([(matrix.data_ptr(), matrix.shape[side], factor, 0) for matrix, factor in right]),
        _address(left), _rows_apart(left), _address(to), _rows_apart(to),
        tuple([(matrix.data_ptr(), matrix.shape[side], 1.0, address) for matrix, address in outer]),
        0 if wide is x else _address(wide), row, *dropout, torch.get_num_threads(),
    )  # fmt: skip


def update(
    x: torch.Tensor,
    left: torch.Tensor,
    right: Sequence[torch.Tensor],
    stored: torch.Tensor,
    *,
    across: bool = False,
    row: int = 0,
    dropout: tuple[int, float] = (0, 0.0),
) -> None:
    """Adds left R to a contiguous fp32 x [M, C] and rounds it into `stored`, which is x where that is fp32.

    Args:
        left: [M, sum of r_i], a slice of columns.
        right: [r_i, C], contiguous, one below the other in R; [C, r_i] if `across`.
        stored: [M, C], contiguous.
        row: address of a float64 [9] for the statistics of `stored`, overflow and underflow null if it is x; or 0.
        dropout: seed and probability with which values of the product are not added.
    """
    assert _low_rank is not None
    side = 1 if across else 0
    _low_rank.update(
        x.data_ptr(), x.shape, across, left.data_ptr(), _rows_apart(left),
        tuple([(matrix.data_ptr(), matrix.shape[side], 1.0, 0) for matrix in right]),
        0 if stored is x else stored.data_ptr(), DTYPES[stored.dtype], row, *dropout, torch.get_num_threads(),
    )  # fmt: skip


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    backward: tuple[torch.Tensor, ...] = (),
) -> None:
    """Causal attention into `out` and `lse`, or with them its gradients; `attention/causal.py` has the formulas.

    Args:
        query, out: [B, heads, S, D] of one dtype, the last dimension dense and a multiple of 16.
        key, value: [B, kv_heads, S, D].
        lse: fp32 [B, heads, S], contiguous.
        backward: the gradient of `out`, and where those of query, key and value go.
    """
    assert _attention is not None
    shape = (*query.shape[:2], key.shape[1], *query.shape[2:])
    tensors = tuple((x.data_ptr(), *x.stride()[:3]) for x in (query, key, value, out, *backward))
    threads = torch.get_num_threads()
    dtype = DTYPES[query.dtype]
    _attention.attention(dtype, shape, scale, lse.data_ptr(), tensors, bool(backward), threads)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    transposed: bool,
    bias: torch.Tensor | None = None,
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
    n_planes = 1 if x.dtype == weight.dtype == torch.bfloat16 else 2
    shape = (*out.shape, x.shape[1])
    return _product.product(
        x.data_ptr(), DTYPES[x.dtype], x.stride(0), weight.data_ptr(), DTYPES[weight.dtype], weight.stride(0),
        transposed, _address(bias), out.data_ptr(), out.stride(0), add, shape, n_planes, torch.get_num_threads(),
    )  # fmt: skip


def _address(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _rows_apart(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.stride(0)
