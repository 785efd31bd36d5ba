"""The training loss: a sum over supervised tokens, with logits formed only where there is a label.

    h = decoder(input_ids)            [B, S, H], padding-free [1, S, H]
    logits = head(h[supervised])      [T, V]
    loss = sum of cross-entropies     float32 []

The caller divides by the number of supervised tokens of the whole step, so that accumulation and padding change
nothing. A head that does more than a projection (soft-capping, scaling) is left to the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PretrainedConfig, PreTrainedModel, masking_utils

from ...instrument.messages import say
from ...instrument.record.once import in_mode
from ...kernels.cross_entropy import token_cross_entropy
from ..data.batches import Batch
from .float32 import is_wide
from .padding_free import attention_of, how_rows_attend, model_inputs, prepare, running, why_not

# Config keys by which architectures transform the logits after the projection (Gemma 2, Cohere, Granite).
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# The two routes differ by the rounding of one matrix product.
ROUTES_AGREE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@contextmanager
def _rows_are_known() -> Iterator[None]:
    """Keeps transformers from looking for rows in the positions; it would ask the device and wait."""
    ask = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = ask


def transforms_logits(model_config: PretrainedConfig) -> bool:
    """Whether the model's config says that logits are more than a projection."""
    return any(getattr(model_config, key, None) not in (None, 1, 1.0) for key in LOGIT_TRANSFORMS)


class SupervisedLoss:
    """Sum of cross-entropies over the supervised tokens of a batch.

    Attributes:
        own_head: whether the model's own forward forms the logits, for all positions.
        fused: whether projection and loss are one operator; a head that is trained or quantized is called as it is.
    """

    _knows_rows: str | None = None
    """The attention implementation that takes padding-free batches."""

    def __init__(self, model: PeftModel, compute_dtype: torch.dtype, transforms: bool | None = None):
        """
        Args:
            transforms: whether the model does more to its logits than project; None: found out by running it.
        """
        base = cast("PreTrainedModel", model.get_base_model())
        self._model, self._decoder = base, cast("torch.nn.Module", base.base_model)
        head: Any = base.get_output_embeddings()
        self._head = cast("torch.nn.Module", head)
        plain = isinstance(head, torch.nn.Linear) and not isinstance(head, BaseTunerLayer)
        self.fused = plain and head.weight.is_floating_point() and not any(p.requires_grad for p in head.parameters())
        self.own_head = head is None or self._decoder is base
        if not self.own_head:
            self.own_head = self._transforms_logits(compute_dtype) if transforms is None else transforms

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Loss sum float32 []; the number of right argmax predictions int64 [], or None where gradients are wanted."""
        return self.of_tokens(batch)[:2]

    def of_tokens(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The same, and the loss of each supervised token, float32 [T], without a gradient."""
        with _rows_are_known(), running(batch):
            return self._loss(batch)

    @property
    def padding_free(self) -> bool:
        """Whether batches come padding-free; not while a remedy tries another attention."""
        return self._knows_rows is not None and attention_of(self._model) == self._knows_rows

    def without_padding(self, compute_dtype: torch.dtype) -> str:
        """Turns to padding-free batches; says in a word why the model cannot, empty if it can."""

        def outputs(batch: Batch) -> torch.Tensor:
            with _rows_are_known(), running(batch):
                return self._outputs(batch)

        reason = why_not(self._model, outputs, ROUTES_AGREE[compute_dtype], torch.finfo(compute_dtype).eps)
        self._knows_rows = None if reason else attention_of(self._model)
        return reason

    def assume_without_padding(self) -> None:
        """Turns to padding-free batches where the model's attention has a form for them, without running it."""
        self._knows_rows = attention_of(self._model) if prepare(self._model) else None

    def how_rows_attend(self, dtype: str, longest: int) -> str | None:
        """A sentence on a GPU's attention to padding-free batches; None where there is nothing to say.

        Args:
            dtype: of the model's products.
            longest: tokens of the longest row there may be.
        """
        return how_rows_attend(self._model, dtype, longest) if self.padding_free else None

    def _outputs(self, batch: Batch) -> torch.Tensor:
        """The logits of the model's own head, else hidden states, of all positions."""
        inputs = model_inputs(batch, attention_of(self._model))
        return self._model(**inputs).logits if self.own_head else self._decoder(**inputs)[0]

    def _loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        assert self.padding_free or not batch.lengths
        # index_select's backward is deterministic, that of hidden[index] is not
        outputs = self._outputs(batch).flatten(0, 1).index_select(0, batch.positions)
        if self.fused and not self.own_head:
            return self._fused_loss(outputs, batch.targets)
        logits = outputs if self.own_head else self._head(outputs)
        # what F.cross_entropy does, to the bit; the tokens are read off its middle
        log_p = F.log_softmax(logits.float(), dim=1)
        loss = F.nll_loss(log_p, batch.targets, reduction="sum")
        losses = F.nll_loss(log_p.detach(), batch.targets, reduction="none")
        return loss, (logits.detach().argmax(-1) == batch.targets).sum(), losses

    def _fused_loss(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        head: Any = self._head
        with ExitStack() as stack:
            if is_wide(head):
                hidden = hidden.float()
                stack.enter_context(torch.autocast(hidden.device.type, enabled=False))
            counted = not torch.is_grad_enabled()
            return token_cross_entropy(hidden, head.weight, targets, bias=head.bias, count_correct=counted)

    @torch.no_grad()
    def _transforms_logits(self, compute_dtype: torch.dtype) -> bool:
        """Asks the config, then compares both routes on four tokens."""
        if transforms_logits(self._model.config):
            return True
        input_ids = torch.arange(4, device=self._model.device)[None]
        with in_mode(self._model, training=False):
            own = self._model(input_ids=input_ids, use_cache=False).logits.float()
            ours = self._head(self._decoder(input_ids=input_ids, use_cache=False)[0]).float()
        limit = ROUTES_AGREE[compute_dtype] * own.nan_to_num(0.0, 0.0, 0.0).abs().max()
        return not torch.allclose(own, ours, rtol=0, atol=float(limit), equal_nan=True)

    def warning(self) -> str | None:
        """A sentence for the user when the slower route is taken."""
        return say("loss.own_head", model=type(self._model).__name__) if self.own_head else None
