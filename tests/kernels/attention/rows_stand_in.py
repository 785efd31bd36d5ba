"""torch's two kernels for rows on the CPU, where they do not exist: what their arguments ask for, by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_train.kernels.attention import rows as rows_attention
from lora_train.kernels.attention.rows import Chip, rows_attention_reference

H100, T4 = Chip((9, 0), True, True), Chip((7, 5), False, True)


def flash(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout, causal, debug, *, scale) -> tuple[Any, ...]:
    assert q.dtype in (torch.float16, torch.bfloat16)
    _check(q, k, v, starts_q, starts_k, longest_q, longest_k)
    assert (dropout, causal, debug) == (0.0, True, False)
    return (rows_attention_reference(q.float(), k.float(), v.float(), starts_q, scale).to(q.dtype),)


def efficient(
    q, k, v, bias, starts_q, starts_k, longest_q, longest_k, dropout, mask_type, keeps_lse, *, scale
) -> tuple[Any, ...]:
    assert q.shape == k.shape  # it takes no groups of heads
    _check(q[0], k[0], v[0], starts_q, starts_k, longest_q, longest_k)
    assert (bias, dropout, mask_type) == (None, 0.0, 1)
    assert keeps_lse == (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
    return (rows_attention_reference(q[0].float(), k[0].float(), v[0].float(), starts_q, scale).to(q.dtype)[None],)


def _check(q, k, v, starts_q, starts_k, longest_q, longest_k) -> None:
    assert q.dtype == k.dtype == v.dtype
    assert all(x.stride(-1) == 1 and x.ndim == 3 for x in (q, k, v))
    assert starts_q.dtype == torch.int32
    assert torch.equal(starts_q, starts_k)
    assert (int(starts_q[0]), int(starts_q[-1])) == (0, q.shape[0])
    assert longest_q == longest_k == int(starts_q.diff().max())


def install(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts them in place; lists what is called."""
    called: list[str] = []
    for name, kernel in (("flash", flash), ("efficient", efficient)):

        def call(*args: Any, name: str = name, kernel: Any = kernel, **kwargs: Any) -> tuple[Any, ...]:
            called.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(rows_attention, f"{name}_forward", call)
    return called
