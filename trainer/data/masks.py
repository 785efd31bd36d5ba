"""From rendered text to tokens and a mask that says which of them are trained on.

A token is supervised when its characters reach into a span that is trained on, so a token that straddles the border
between prompt and answer is. Plain formats get the tokenizer's special tokens and end with the end-of-text token,
which is trained on; a chat template writes its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .formats import Rendered


def tokenize(
    rows: Sequence[Rendered], tokenizer: Any, train_on_inputs: bool = False, is_chat: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and mask of each row.

    Args:
        rows: texts and what of them is trained on.
        tokenizer: a fast transformers tokenizer.
        train_on_inputs: everything is trained on.
        is_chat: the texts hold their special tokens already.

    Yields:
        input_ids int32 [length] and supervised bool [length].
    """
    if not rows:
        return
    texts = [row.text for row in rows]
    encoded = tokenizer(
        texts,
        add_special_tokens=not is_chat,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_special_tokens_mask=True,
    )
    columns = (encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"])
    for row, ids, offsets, added in zip(rows, *columns, strict=True):
        spans = ((0, len(row.text)),) if train_on_inputs else row.spans
        supervised = _reaches_into(spans, offsets, np.array(added, bool))
        ids = np.array(ids, np.int32)
        if not is_chat and begins_twice(ids, tokenizer):
            ids, supervised = ids[1:], supervised[1:]
        if not is_chat and tokenizer.eos_token_id is not None:
            if not len(ids) or ids[-1] != tokenizer.eos_token_id:
                ids, supervised = np.append(ids, np.int32(tokenizer.eos_token_id)), np.append(supervised, True)
            supervised[-1] = True
        supervised[:1] = False  # nothing predicts the first token
        yield ids, supervised


def begins_twice(ids: Sequence[int] | np.ndarray, tokenizer: Any) -> bool:
    """Whether the tokenizer put its begin-of-text token before a text that already has one."""
    begin = tokenizer.bos_token_id
    return begin is not None and len(ids) > 1 and ids[0] == begin and ids[1] == begin


def end_of(ids: np.ndarray, supervised: np.ndarray, tokenizer: Any) -> int | None:
    """The token that ends what is trained on: the last but for white space, if it is one that ends a turn or a text.

    Args:
        ids, supervised: of a row, int32 and bool [length].
        tokenizer: knows its added tokens and its end-of-text token.
    """
    for token in reversed(ids[supervised].tolist()):
        if token == tokenizer.eos_token_id or token in tokenizer.added_tokens_decoder:
            return token
        if tokenizer.decode([token]).strip():
            break
    return None


def _reaches_into(
    spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], added: np.ndarray
) -> np.ndarray:
    """bool [length]: whether a token's characters and a span overlap; never for tokens that are not in the text."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    # tokenizers that trim offsets report an empty place for a token of white space alone: it follows the one before
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    starts = np.where((starts == ends) & ~added, np.minimum(starts, before), starts)
    supervised = np.zeros(len(ends), bool)
    for start, end in spans:
        supervised |= (ends > start) & (starts < end) & (ends > starts)
    return supervised & ~added
