"""Batches without padding: the rows of a micro-batch one behind the other, and attention row by row.

    input_ids     [1, S]   the tokens of all rows, S = sum of the rows' lengths
    position_ids  [1, S]   0, 1, ... anew in every row
    attention              for each row r: softmax(q_r k_r^T / sqrt(d) + mask_r) v_r over views split at the rows' ends

Linears, norms and the loss see only real tokens. transformers makes a model's masks once, ahead of its layers, by a
function that the attention implementation names, and hands them to every layer. Under the name `PER_ROW` that function
gives `Rows`: the lengths, and for each length the mask that transformers makes for such a row alone, with its sliding
or chunked window. The attention function of that name reads it. What a layer is handed it is handed again when
activation checkpointing runs it a second time.

Flash attention knows rows by itself, from their starts. Whether a model takes part is found by running it: a model
that carries a state along the sequence, or makes masks of its own, keeps padded batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..kernels.attention import attention, takes
from .batches import Batch, collate
from .data import Example

PER_ROW = "lora_train_per_row"
FLASH = "flash_attention"
# How much a row may change with the row before it, of how much it changes where it does see it.
LEAK = 1 / 16
# How often a value may be rounded the other way on its path through the layers.
N_ROUNDINGS = 16
# What code that came with a model may raise when it is called in a way it does not know.
FOREIGN_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths of the rows in the batch that runs", default=())


@dataclass(frozen=True)
class Rows:
    """Stands where a mask would: the rows' lengths, and by length the mask of a row, None for the causal one."""

    lengths: tuple[int, ...]
    masks: dict[int, torch.Tensor | None]


@contextmanager
def running(batch: Batch) -> Iterator[None]:
    """While it lasts, masks are made for the rows of this batch."""
    token = _lengths.set(batch.lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


def mask_of_rows(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> torch.Tensor | Rows | None:
    """transformers' mask function: of a padded batch the usual mask."""
    lengths = _lengths.get()
    if not lengths:
        return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, **kwargs)
    kwargs["attention_mask"] = None  # a mask of the whole batch, which some models make, says nothing: all is real
    return Rows(lengths, {n: sdpa_mask(batch_size=1, q_length=n, kv_length=n, **kwargs) for n in set(lengths)})


def attention_of_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Rows | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function.

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


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    """[B, S, heads, d] of rows of one length."""
    plain = mask is None and not kwargs.get("dropout") and kwargs.get("position_bias") is None
    if plain and kwargs.get("is_causal", getattr(module, "is_causal", True)) is not False and takes(query, key, value):
        scale = kwargs.get("scaling")
        return attention(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]


AttentionInterface.register(PER_ROW, attention_of_rows)
AttentionMaskInterface.register(PER_ROW, mask_of_rows)


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


def prepare(model: PreTrainedModel) -> bool:
    """Gives a model with sdpa attention the attention of rows; says whether it has one that knows rows."""
    if attention_of(model) == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(PER_ROW)
    return attention_of(model).startswith((PER_ROW, FLASH))


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
    before, training = attention_of(model), model.training
    first, other, second = _row(1, 6), _row(6, 11), _row(11, 14)

    def run(rows: list[Example], padding_free: bool) -> torch.Tensor:
        return hidden(collate(rows, 0, padding_free).to(model.device)).float().nan_to_num()

    model.eval()
    try:
        padded = run([first, second], padding_free=False)
        if not prepare(model):
            return "eager" if before == "eager" else "unknown"
        ours, changed = (run([row, second], padding_free=True)[0] for row in (first, other))
        same = torch.allclose(torch.cat([padded[0], padded[1, :3]]), ours, rtol=0, atol=tolerance * _largest(padded))
        mixed = _largest(ours[5:] - changed[5:])
        if same and mixed > 0:  # experts round differently when they are handed more or fewer tokens
            seen = [run([_joined(row, second)], padding_free=False)[0, 5:] for row in (first, other)]
            same = mixed < min(LEAK * _largest(seen[0] - seen[1]), N_ROUNDINGS * rounding * _largest(padded))
    except FOREIGN_ERRORS:
        same = False
    finally:
        model.train(training)
    if not same:
        model.set_attn_implementation(before)
    return "" if same else "differs"


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())


def _joined(first: Example, second: Example) -> Example:
    ids = np.concatenate([first.input_ids, second.input_ids])
    return Example(0, ids, np.arange(len(ids)) > 0)


def _row(start: int, end: int) -> Example:
    return Example(0, np.arange(start, end, dtype=np.int32), np.arange(end - start) > 0)
