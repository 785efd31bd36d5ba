"""Bytes of the kernels that pass over one tensor: statistics, NF4 decode, loss. Checked as fused_traffic.py is."""

import torch
import triton
from lora_train.kernels.frozen import nf4
from lora_train.kernels.statistics.tile_stats import split

from .fused_traffic import PARTIAL_BYTES, ROW_BYTES
from .traffic import Access, Launch


def stats(n: int, dtype: torch.dtype) -> list[Launch]:
    """`tensor_stats` of n values: partials, and their row."""
    x, partials = n * dtype.itemsize, split(n)[0] * PARTIAL_BYTES
    tiles = {
        "x_ptr": Access("X", x, loaded=x),
        "partials_ptr": Access("statistics", partials, stored=partials),
    }
    row = {
        "partials_ptr": Access("statistics", partials, loaded=partials),
        "rows_ptr": Access("rows", ROW_BYTES, stored=ROW_BYTES),
    }
    return [Launch("stats", tiles), Launch("stats row", row)]


def nf4_decode(n: int, blocksize: int, dtype: torch.dtype) -> list[Launch]:
    """Nested NF4 to a dense weight of n values.

    The tables are a gather for every value of a tile: 64 bytes of code book asked for again and again, from L1.
    """
    programs = triton.cdiv(n, 2 * nf4.TILE_BYTES)
    blocks, n_bytes = triton.cdiv(n, blocksize), triton.cdiv(n, 2)
    out = n * dtype.itemsize
    rows = 2 * nf4.TILE_BYTES // blocksize
    accesses = {
        "packed_ptr": Access("W packed", n_bytes, loaded=n_bytes),
        "absmax_ptr": Access("absmax", blocks, loaded=blocks),
        "nested_absmax_ptr": Access("nested absmax", 4 * triton.cdiv(blocks, 256), loaded=4 * blocks),
        "offset_ptr": Access("offset", 4, loaded=4 * programs),
        "nested_code_ptr": Access("nested code", 1024, loaded=4 * programs * rows),
        "code_ptr": Access("code", 64, loaded=4 * programs * 2 * nf4.TILE_BYTES),
        "out_ptr": Access("W", out, stored=out),
    }
    return [Launch("nf4 decode", accesses)]


def cross_entropy(n_tokens: int, vocabulary: int, dtype: torch.dtype) -> list[Launch]:
    """Loss, correct and gradient of a chunk of logits, all tokens supervised.

    The gradient reads its row of logits a second time. Rows in flight exceed L2 together, so that is HBM again.
    """
    logits, grad = 4 * n_tokens * vocabulary, n_tokens * vocabulary * dtype.itemsize
    accesses = {
        "logits_ptr": Access("logits", logits, loaded=2 * logits + 4 * n_tokens),
        "labels_ptr": Access("labels", 8 * n_tokens, loaded=8 * n_tokens),
        "losses_ptr": Access("losses", 4 * n_tokens, stored=4 * n_tokens),
        "correct_ptr": Access("correct", 4 * n_tokens, stored=4 * n_tokens),
        "grad_ptr": Access("grad", grad, stored=grad),
    }
    return [Launch("cross entropy", accesses)]
