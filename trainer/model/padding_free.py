"""Batches without padding: the rows of a micro-batch one behind the other, and attention that knows rows.

    input_ids     [1, S]   the tokens of all rows, S = sum of the rows' lengths
    position_ids  [1, S]   0, 1, ... anew in every row
    attention              for each row r: softmax(q_r k_r^T / sqrt(d) + mask_r) v_r over views split at the rows' ends

Linears, norms and the loss see only real tokens. transformers makes a model's masks once, ahead of its layers, by a
function that the attention implementation names, and hands them to every layer. Under our two names that function
gives `Rows`: the lengths, and for each length the mask that transformers makes for such a row alone, with its sliding
or chunked window. The attention function of the name reads it: `PER_ROW` goes row by row, `AT_ONCE` takes all rows in
one call of a CUDA kernel (kernels/attention/rows.py) where none of them needs a mask besides the causal one. What a
layer is handed it is handed again when activation checkpointing runs it a second time.

The flash-attn package knows rows by itself, from their starts. Whether a model takes part is found by running it: a
model that carries a state along the sequence, or makes masks of its own, keeps padded batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ...instrument.messages import say
from ...instrument.record.once import in_mode
from ...kernels.attention.causal import attention, takes
from ...kernels.attention.rows import Bounds, chip_of, kernel_for, rows_attention
from ..data.batches import Batch, collate
from ..data.examples import Example

PER_ROW = "lora_train_per_row"
AT_ONCE = "lora_train_rows_at_once"
FLASH = "flash_attention"
# How much a row may change with the row before it, of how much it changes where it does see it.
LEAK = 1 / 16
# How often a value may be rounded the other way on its path through the layers.
N_ROUNDINGS = 16
# What code that came with a model may raise when it is called in a way it does not know.
FOREIGN_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_batch: ContextVar[Batch | None] = ContextVar("the batch that runs", default=None)


@dataclass(frozen=True)
class Rows:
    """Stands where a mask would.

    Attributes:
        lengths: of the rows.
        masks: by length the mask of a row, None for the causal one.
        starts: int32 [rows + 1] on the device: where each row begins, and S.
    """

    lengths: tuple[int, ...]
    masks: dict[int, torch.Tensor | None]
    starts: torch.Tensor | None = None


@contextmanager
def running(batch: Batch) -> Iterator[None]:
    """While it lasts, masks are made for the rows of this batch."""
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)


def mask_of_rows(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> torch.Tensor | Rows | None:
    """transformers' mask function: of a padded batch the usual mask."""
    batch = _batch.get()
    if batch is None or not batch.lengths:
        return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **kwargs)
    kwargs["attention_mask"] = None  # a mask of the whole batch, which some models make, says nothing: all is real
    masks = {n: sdpa_mask(batch_size=1, q_length=n, kv_length=n, **kwargs) for n in set(batch.lengths)}
    return Rows(batch.lengths, masks, batch.row_starts)


def attention_of_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Rows | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function, row by row.

    Args:
        module: the layer that calls.
        query: [1, heads, S, d], and key and value with as many heads or fewer.
        attention_mask: `Rows`, or of a padded batch the usual mask.
        kwargs: what sdpa takes.

    Returns:
        [1, S, heads, d].
    """
    if not isinstance(attention_mask, Rows):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths, masks = attention_mask.lengths, attention_mask.masks
    if len(masks) == 1:  # rows of one length are a batch, without a copy
        length, mask = next(iter(masks.items()))
        q, k, v = (t.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1) for t in (query, key, value))
        return _attend(module, q, k, v, mask, **kwargs).flatten(0, 1)[None], None
    # one split: its backward is one concatenation, that of slices would fill the whole with zeros for every row
    split = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    outputs = [
        _attend(module, q, k, v, masks[length], **kwargs) for length, q, k, v in zip(lengths, *split, strict=True)
    ]
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], None


def attention_at_once(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Rows | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`attention_of_rows`, with all rows in one call of a kernel where one can compute it."""
    if isinstance(attention_mask, Rows) and attention_mask.starts is not None:
        device = query.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else query.dtype
        plain = all(mask is None for mask in attention_mask.masks.values()) and _is_causal_alone(module, kwargs)
        same = key.shape == value.shape and query.shape[2:] == key.shape[2:]
        kernel = kernel_for(chip_of(device), dtype, query.shape[-1]) if plain and same else None
        if kernel is not None:
            q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
            starts, longest = attention_mask.starts, max(attention_mask.lengths)
            return rows_attention(q, k, v, Bounds(starts, longest), _scale(query, kwargs), kernel)[None], None
    return attention_of_rows(module, query, key, value, attention_mask, **kwargs)


def _scale(query: torch.Tensor, kwargs: Mapping[str, Any]) -> float:
    scale = kwargs.get("scaling")
    return query.shape[-1] ** -0.5 if scale is None else scale


def _is_causal_alone(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer wants nothing but causal attention: no dropout, bias or cap of the scores."""
    more = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    causal = kwargs.get("is_causal", getattr(module, "is_causal", True)) is not False
    return causal and not more and not kwargs.get("dropout")


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    """[B, S, heads, d] of rows of one length."""
    if mask is None and _is_causal_alone(module, kwargs) and takes(query, key, value):
        return attention(query, key, value, _scale(query, kwargs))
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]


AttentionInterface.register(PER_ROW, attention_of_rows)
AttentionInterface.register(AT_ONCE, attention_at_once)
for _name in (PER_ROW, AT_ONCE):
    AttentionMaskInterface.register(_name, mask_of_rows)


def attention_of(model: PreTrainedModel) -> str:
    """The name of the model's attention implementation."""
    return model.config._attn_implementation or ""


def model_inputs(batch: Batch, attention: str) -> dict[str, Any]:
    """What a model under this attention implementation is called with."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.lengths:
        inputs["position_ids"] = batch.position_ids
    if batch.lengths and attention.startswith(FLASH):
        longest = max(batch.lengths)
        inputs |= {"cu_seq_lens_q": batch.row_starts, "cu_seq_lens_k": batch.row_starts}
        inputs |= {"max_length_q": longest, "max_length_k": longest}
    return inputs


def prepare(model: PreTrainedModel, name: str = PER_ROW) -> bool:
    """Gives a model with sdpa attention the attention of rows; says whether it has one that knows rows."""
    if attention_of(model) in ("sdpa", PER_ROW, AT_ONCE) and model._can_set_attn_implementation():
        model.set_attn_implementation(name)
    return attention_of(model).startswith((PER_ROW, AT_ONCE, FLASH))


def how_rows_attend(model: PreTrainedModel, dtype: str, longest: int) -> str | None:
    """For the banner: whether a GPU computes the attention of a batch's rows in one call, and why not.

    Args:
        dtype: of the model's products.
        longest: tokens of the longest row there may be.
    """
    chip, config = chip_of(model.device), model.config.get_text_config()
    if chip is None or attention_of(model) not in (PER_ROW, AT_ONCE):
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dropout = getattr(config, "attention_dropout", None) or 0.0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((window for window in windows if window), default=longest)
    kernel = kernel_for(chip, getattr(torch, dtype), head_dim)
    if attention_of(model) == PER_ROW:
        return say("banner.rows_apart", reason=say("rows.differs"))
    if kernel is None:
        return say("banner.rows_apart", reason=say("rows.no_kernel", dtype=dtype, head_dim=head_dim))
    if dropout:
        return say("banner.rows_apart", reason=say("rows.dropout", dropout=dropout))
    if longest > window:
        return say("banner.rows_window", kernel=kernel, window=window)
    return say("banner.rows_at_once", kernel=kernel)


@torch.no_grad()
def why_not(model: PreTrainedModel, hidden: Callable[[Batch], torch.Tensor], tolerance: float, rounding: float) -> str:
    """Why the model keeps padded batches, as a word for the catalogue; empty where it takes part.

    Two rows are run padded and one behind the other: the values must agree, and the second row's must not depend on
    what the first says.

    Args:
        model: on success it has an attention that knows rows.
        hidden: runs a batch and gives [B, S, H].
        tolerance: between the two ways, of the largest value.
        rounding: of one product, of the largest value.
    """
    before = attention_of(model)

    def run(rows: Sequence[Example], padding_free: bool) -> torch.Tensor:
        return hidden(collate(rows, 0, padding_free).to(model.device)).float().nan_to_num()

    reason = "padding.differs"
    with in_mode(model, training=False), suppress(*FOREIGN_ERRORS):
        padded = run(TRIED, padding_free=False)
        for name in (AT_ONCE, PER_ROW) if chip_of(model.device) is not None else (PER_ROW,):
            if not prepare(model, name):
                reason = "padding.eager" if before == "eager" else "padding.unknown"
                break
            with suppress(*FOREIGN_ERRORS):
                if _agrees(run, padded, tolerance, rounding):
                    reason = ""
                    break
    if reason and attention_of(model) != before:
        model.set_attn_implementation(before)
    return reason


def _agrees(run: Callable[..., torch.Tensor], padded: torch.Tensor, tolerance: float, rounding: float) -> bool:
    """Whether two rows have their padded values one behind the other, and the second knows nothing of the first."""
    first, second = TRIED
    ours, changed = (run([row, second], padding_free=True)[0] for row in (first, OTHER))
    same = torch.allclose(torch.cat([padded[0], padded[1, :3]]), ours, rtol=0, atol=tolerance * _largest(padded))
    mixed = _largest(ours[5:] - changed[5:])
    if same and mixed > 0:  # experts round differently when they are handed more or fewer tokens
        seen = [run([_joined(row, second)], padding_free=False)[0, 5:] for row in (first, OTHER)]
        same = mixed < min(LEAK * _largest(seen[0] - seen[1]), N_ROUNDINGS * rounding * _largest(padded))
    return same


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())


def _joined(first: Example, second: Example) -> Example:
    ids = np.concatenate([first.input_ids, second.input_ids])
    return Example(0, ids, np.arange(len(ids)) > 0)


def _row(start: int, end: int) -> Example:
    return Example(0, np.arange(start, end, dtype=np.int32), np.arange(end - start) > 0)


# What `why_not` runs: two rows, and another first one.
TRIED, OTHER = (_row(1, 6), _row(11, 14)), _row(6, 11)
