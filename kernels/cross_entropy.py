"""Loss of a language-model head over supervised tokens only, a chunk of tokens at a time.

    z = hidden W^T + bias                              [c, V]  fp32, one chunk at a time
    loss = sum over tokens of logsumexp(z) - z[label]  []      fp32
    d loss / d hidden = (softmax(z) - onehot(label)) W [T, H]  fp32, made in forward while z is there

hidden [T, H] are the states that have a label, W [V, H] is frozen, bias [V] optional. The full [T, V] never
exists. That forward already knows the gradient but for one factor is the idea of Liger's fused linear
cross-entropy.

The factor comes with backward: under fp16 it is scale / n, of any size. The gradient is kept in fp32 until it
has been multiplied, so nothing underflows that would not in the product. On CUDA the GEMM that makes it takes
16-bit operands and returns fp32; softmax(z) - onehot is at most 1 in magnitude, and goes in times 2^15: fp16
then holds probabilities down to 2^-39.

A label below 0 (-100) is no supervision: loss and gradient of its token are 0. A label of V or more is an
error on the CPU and makes the loss NaN on CUDA, which does not wait to look.
"""

import threading
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .backend import AotVariant, jit, on_device, uses_triton
from .frozen.product import product_scratch, project, project_back
from .ledger import FLOAT, Ledger, Matrix, Scratch, size
from .operators import Saved, operator

__all__ = ["linear_cross_entropy", "linear_cross_entropy_reference", "token_cross_entropy"]

IGNORE_INDEX = -100

CPU_CHUNK = 1 << 25
"""Logits held at once on the CPU: 128 MiB, so that W, which is larger than any cache, is read a few times only."""

CUDA_CHUNK = 1 << 26
"""Logits held at once on CUDA: 256 MiB, and half of it for their gradient."""

CHUNK_ROWS = 16
"""Rows of logits of which a chunk on CUDA is a multiple."""

GRAD_SCALE = 32768.0
"""Factor on softmax(z) - onehot in 16 bits; the largest that keeps it below 65504."""

TINY_PROBABILITY = 1e-30
"""Below it -log(p) is not taken from the fp32 p, which is losing bits or 0."""

BLOCK_V = 4096
NUM_WARPS = 8

_held = threading.local()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, count_correct: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Sum of the token losses; differentiable in `hidden` alone. Arguments and results as `token_cross_entropy`."""
    return token_cross_entropy(hidden, weight, labels, bias=bias, count_correct=count_correct)[:2]


def token_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, count_correct: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Sum of the token losses, differentiable in `hidden` alone, and the loss of each token, which is not.

    Args:
        hidden: [T, H] in fp32, fp16 or bf16. Products take autocast's dtype where it is on, as in
            lora_linear/__init__.py.
        weight: [V, H], frozen. On the CPU fp32 weights stay fp32.
        labels: int64 [T].
        bias: [V], frozen.
        count_correct: also count tokens whose label has the largest logit.

    Returns:
        fp32 [], int64 [] or None, and fp32 [T].
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    needs_grad = torch.is_grad_enabled() and hidden.requires_grad
    loss, n_correct, _, losses = _linear_cross_entropy(hidden, weight, labels, bias, dtype, needs_grad, count_correct)
    return loss, n_correct if count_correct else None, losses


def _save(inputs: tuple, output: tuple) -> Saved:
    return [output[2]], (inputs[0].dtype, len(inputs))


def _differentiate(grads: Any, tensors: Any, how: Any, _needs: Any) -> tuple:
    (d_hidden,), (grad_loss,), (dtype, n_inputs) = tensors, grads, how
    return (d_hidden * grad_loss).to(dtype), *[None] * (n_inputs - 1)


@operator("linear_cross_entropy", _save, _differentiate)
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    needs_grad: bool,
    count_correct: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [] fp32, n_correct [] int64, d loss / d hidden [T, H] fp32 or [0, H], losses of tokens [T] fp32."""
    forward = _forward_triton if uses_triton(hidden) else _forward_cpu
    with torch.autocast(hidden.device.type, enabled=False):
        return forward(hidden.to(dtype), weight, labels, bias, needs_grad, count_correct)


@_linear_cross_entropy.register_fake
def _(hidden, weight, labels, bias, dtype, needs_grad, count_correct):
    loss = hidden.new_empty((), dtype=torch.float32)
    n_correct = hidden.new_empty((), dtype=torch.int64)
    n_rows = hidden.shape[0] if needs_grad else 0
    losses = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    return loss, n_correct, hidden.new_empty((n_rows, hidden.shape[1]), dtype=torch.float32), losses


def _forward_cpu(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, needs_grad: bool, count_correct: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three passes over a chunk of logits: GEMM, softmax in place, GEMM."""
    n_tokens, vocabulary = hidden.shape[0], weight.shape[0]
    step = max(1, min(n_tokens, CPU_CHUNK // vocabulary))
    buffer = _room(step, vocabulary)
    loss, n_correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    d_hidden = torch.zeros(hidden.shape) if needs_grad else torch.empty(0, hidden.shape[1])
    losses = torch.empty(n_tokens)
    for start in range(0, n_tokens, step):
        rows = slice(start, start + step)
        h, label = hidden[rows], labels[rows]
        ignored = label < 0
        label = label.masked_fill(ignored, 0).unsqueeze(1)
        logits = project(h, weight, bias, out=buffer[: h.shape[0]])
        p = torch.softmax(logits, dim=1, out=logits)
        p_label = p.gather(1, label)
        loss += _total(_token_losses(p_label, h, label, weight, bias), ignored, losses[rows])
        if count_correct:
            n_correct += ((p_label.squeeze(1) >= p.amax(1)) & ~ignored).sum()
        if needs_grad:
            p.scatter_(1, label, p_label - 1)
            project_back(p, weight, out=d_hidden[rows])
            d_hidden[rows].masked_fill_(ignored.unsqueeze(1), 0)
    return loss.float(), n_correct, d_hidden, losses


def _room(n_rows: int, n_cols: int) -> Tensor:
    """fp32 [n_rows, n_cols] for logits, in the same memory at every call: a fresh block is faulted in page by page. It
    is asked for whole, and what no call has used is not there yet.
    """
    room = getattr(_held, "room", None)
    if room is None or room.numel() < n_rows * n_cols:
        room = _held.room = torch.empty(max(CPU_CHUNK, n_rows * n_cols))
    return room[: n_rows * n_cols].view(n_rows, n_cols)


def _token_losses(p_label: Tensor, h: Tensor, label: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """-log p of every token; where p is tiny, from its logits, made again."""
    losses = -p_label.squeeze(1).log()
    tiny = (p_label.squeeze(1) < TINY_PROBABILITY).nonzero().squeeze(1)
    if tiny.numel():
        logits = project(h[tiny], weight, bias)
        losses[tiny] = logits.logsumexp(1) - logits.gather(1, label[tiny]).squeeze(1)
    return losses


def _total(losses: Tensor, ignored: Tensor, out: Tensor) -> Tensor:
    """Their sum without those that are ignored, float64 []; what is added up goes to `out`."""
    losses = losses.masked_fill(ignored, 0)
    out.copy_(losses)
    return losses.sum(dtype=torch.float64)


@jit
def _cross_entropy_kernel(
    logits_ptr, bias_ptr, labels_ptr, losses_ptr, correct_ptr, grad_ptr, n_cols, scale,
    HAS_BIAS: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of logits: its loss, whether its label is largest, and scale (softmax - onehot)."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    row_ptr = logits_ptr + row * n_cols
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        z = tl.load(row_ptr + cols, mask=mask, other=float("-inf"))
        if HAS_BIAS:
            z += tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(z))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(z - new_largest))
        largest = new_largest
    log_total = largest + tl.log(total)
    known = (label >= 0) & (label < n_cols)
    z_label = tl.load(row_ptr + label, mask=known, other=float("nan"))
    if HAS_BIAS:
        z_label += tl.load(bias_ptr + label, mask=known, other=0.0).to(tl.float32)
    tl.store(losses_ptr + row, tl.where(label < 0, 0.0, log_total - z_label))
    tl.store(correct_ptr + row, (z_label >= largest).to(tl.int32))
    if GRAD:
        for start in range(0, n_cols, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = cols < n_cols
            z = tl.load(row_ptr + cols, mask=mask, other=0.0)
            if HAS_BIAS:
                z += tl.load(bias_ptr + cols, mask=mask, other=0.0).to(tl.float32)
            d = (tl.exp(z - log_total) - tl.where(cols == label, 1.0, 0.0)) * scale
            d = tl.where(label < 0, 0.0, d)
            tl.store(grad_ptr + row * n_cols + cols, d.to(grad_ptr.dtype.element_ty), mask=mask)


def _mm_fp32(a: Tensor, b: Tensor) -> Tensor:
    """a b in fp32 from 16-bit operands: accumulated and returned in fp32, rounded nowhere."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _forward_triton(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, needs_grad: bool, count_correct: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_forward_cpu`; counting the correct tokens is free."""
    n_tokens, vocabulary = hidden.shape[0], weight.shape[0]
    weight = weight.to(hidden.dtype)
    # whole multiples: a chunk that began at another address would be another variant of the kernel
    step = max(CHUNK_ROWS, CUDA_CHUNK // vocabulary // CHUNK_ROWS * CHUNK_ROWS)
    scale = 1.0 if hidden.dtype == torch.float32 else GRAD_SCALE
    losses = hidden.new_empty(n_tokens, dtype=torch.float32)
    correct = hidden.new_empty(n_tokens, dtype=torch.int32)
    d_hidden = hidden.new_empty(n_tokens if needs_grad else 0, hidden.shape[1], dtype=torch.float32)
    grad = hidden.new_empty(min(step, n_tokens) if needs_grad else 0, vocabulary)
    for start in range(0, n_tokens, step):
        rows = slice(start, start + step)
        h = hidden[rows]
        logits = _mm_fp32(h, weight.t())
        with on_device(logits):
            _cross_entropy_kernel[(h.shape[0],)](
                logits, logits if bias is None else bias, labels[rows], losses[rows], correct[rows], grad,
                vocabulary, scale, HAS_BIAS=bias is not None, GRAD=needs_grad, BLOCK=BLOCK_V,
                num_warps=NUM_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
        if needs_grad:
            torch.mul(_mm_fp32(grad[: h.shape[0]], weight), 1 / scale, out=d_hidden[rows])
    loss, n_correct = losses.sum(dtype=torch.float64).float(), correct.sum(dtype=torch.int64)
    return loss, n_correct, d_hidden, losses


def cross_entropy_scratch(*arguments: Any) -> Scratch:
    """Bytes that the operator takes beside what it returns, from its arguments, if no label is all but impossible."""
    hidden, weight, _, bias, dtype, needs_grad, count_correct = arguments
    ledger, (n_tokens, width), vocabulary, on_gpu = Ledger(), hidden.shape, weight.shape[0], uses_triton(hidden)
    ledger.take(hidden.numel() * size(dtype) if hidden.dtype != dtype else 0)
    cast = size(dtype) * weight.numel() if on_gpu and weight.dtype != dtype else 0
    ledger.take(cast + (8 * n_tokens if on_gpu else 8))
    ledger.keep(FLOAT * n_tokens * width if needs_grad else 0)
    losses = FLOAT * n_tokens  # on a GPU they are among what was taken
    ledger.kept += losses if on_gpu else ledger.take(losses)
    step = CHUNK_ROWS * max(1, CUDA_CHUNK // vocabulary // CHUNK_ROWS)
    if not on_gpu:
        ledger.keep(8)
        step = max(1, min(n_tokens, CPU_CHUNK // vocabulary))
        ledger.stays["logits"] = FLOAT * step * vocabulary
    elif needs_grad:
        ledger.take(size(dtype) * min(step, n_tokens) * vocabulary)
    before = 0
    for start in range(0, n_tokens, step):
        n = min(step, n_tokens - start)
        if on_gpu:
            logits = ledger.take(FLOAT * n * vocabulary)
            ledger.give(before)
            ledger.within(FLOAT * n * width if needs_grad else 0)
            before = logits
        else:
            _chunk_scratch(ledger, Matrix(n, width, dtype), weight, bias, (needs_grad, count_correct), before)
            before = n
    ledger.kept += ledger.take(FLOAT) + (ledger.take(8) if on_gpu else 0)
    return ledger.scratch()


def _chunk_scratch(
    ledger: Ledger, h: Matrix, weight: Tensor, bias: Tensor | None, how: tuple[bool, bool], before: int
) -> None:  # fmt: skip
    """Of a turn of `_forward_cpu`, with labels, masks and p(label) of the turn `before`, which had so many tokens."""
    n, frozen, (needs_grad, count_correct) = h.n_rows, Matrix(weight.shape[0], h.n_cols, weight.dtype), how
    ledger.give(8 * before)
    ledger.give(ledger.take(8 + n) - n, before)  # a mask, beside a number
    ledger.take(8 * n)
    in_float = ledger.take(FLOAT * bias.numel() if bias is not None and bias.dtype != torch.float32 else 0)
    product_scratch(ledger, h, frozen)
    ledger.give(in_float)
    values = ledger.take(FLOAT * n)
    ledger.give(FLOAT * before)
    ledger.take(values)
    ledger.within(values)
    ledger.give(ledger.compare(n, torch.float32))
    ledger.within(values)
    ledger.total(n, copied=2 * values)
    ledger.give(values)
    if count_correct:
        largest = ledger.take(values)
        ledger.take(n)
        ledger.give(largest)
        ledger.take(2 * n)
        ledger.give(2 * n)
        ledger.total(n, copied=8 * n)
        ledger.give(n)
    if needs_grad:
        ledger.give(ledger.beside_number(values, torch.float32))
        product_scratch(ledger, Matrix(n, frozen.n_rows, torch.float32), frozen)


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` in plain PyTorch, in the dtype of its inputs: loss, and number correct."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    supervised = labels >= 0
    loss = torch.nn.functional.cross_entropy(
        logits, labels.masked_fill(~supervised, IGNORE_INDEX), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    z_label = logits.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    return loss, ((z_label >= logits.amax(1)) & supervised).sum()


def aot_variants() -> list[AotVariant]:
    """What `benchmarks/compile_kernels.py` compiles ahead of time."""
    pointers = {
        "logits_ptr": "*fp32",
        "bias_ptr": "*fp32",
        "labels_ptr": "*i64",
        "losses_ptr": "*fp32",
        "correct_ptr": "*i32",
    }
    return [
        AotVariant(
            f"cross entropy {dtype}",
            _cross_entropy_kernel,
            {**pointers, "grad_ptr": f"*{dtype}", "n_cols": "i32", "scale": "fp32"},
            {"HAS_BIAS": True, "GRAD": True, "BLOCK": BLOCK_V},
            (*pointers, "grad_ptr", "n_cols"),
            num_warps=NUM_WARPS,
        )
        for dtype in ("fp16", "bf16", "fp32")
    ]
