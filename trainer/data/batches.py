"""Which rows each step sees, in which order, and their tensors.

The order is a function of the seed and the epoch alone, and any step's rows are found without visiting the
steps before it: a resumed run reads nothing twice. One step is `gradient_accumulation_steps` micro-batches on
each process; rank k takes the k-th slice of every micro-batch, so that two processes see the rows of one
process with twice the accumulation. The last step of an epoch may be smaller.

With `data.packing` the bins of packing.py stand where the rows do: a step is so many bins, a micro-batch the rows of
its bins. Rows of a bin share nothing but the micro-batch.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from ...kernels.backend import is_gpu
from .examples import Dataset, Example
from .packing import epoch_bins, fill_bins


@dataclass(frozen=True)
class Batch:
    """The tensors of one micro-batch, T of its tokens supervised.

    Attributes:
        input_ids: int64 [B, S], B rows padded on the right; padding-free [1, S], the rows one behind the other.
        positions: int64 [T], indices into the flattened [B * S] positions whose next token is supervised.
        targets: int64 [T], those next tokens.
        rows: source index of each row.
        n_tokens: tokens without the padding.
        lengths: tokens of each row of a padding-free batch; empty where the batch is padded.
        position_ids: int64 [1, S] of a padding-free batch, from 0 in every row.
        row_starts: int32 [rows + 1] of a padding-free batch: where each row begins, and S.
        attention_mask: int64 [B, S] of a classifier's batch, 0 for padding. Its T targets are the labels: int64 [T], or
            float32 [B, n] for several labels or values a row; of rows, `positions` are their numbers in the batch.
        token_type_ids: int64 [B, S], where the rows have two texts and the model tells them apart.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    rows: tuple[int, ...]
    n_tokens: int
    lengths: tuple[int, ...] = ()
    position_ids: torch.Tensor | None = None
    row_starts: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None

    @property
    def starts(self) -> list[int]:
        """Where each row begins among the B * S positions, and their number."""
        if self.lengths:
            return [0, *accumulate(self.lengths)]
        n_rows, width = self.input_ids.shape
        return list(range(0, n_rows * width + 1, width))

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy does not wait."""
        if not is_gpu(device):
            return self

        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: t.pin_memory().to(device, non_blocking=True) for name, t in tensors.items()})


def collate(examples: Sequence[Example], pad_token_id: int, padding_free: bool = False) -> Batch:
    """Puts examples side by side, padded on the right, or one behind the other; finds the supervised targets.

    Right padding needs no attention mask in a causal model: no real token looks at what comes after it.
    """
    if examples[0].labels is not None:
        return _labelled(examples, pad_token_id)
    if padding_free:
        return _concatenated(examples)
    width = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_token_id, dtype=torch.int64)
    positions, targets = [], []
    for index, example in enumerate(examples):
        ids = torch.from_numpy(example.input_ids).long()
        input_ids[index, : len(ids)] = ids
        target_at = torch.from_numpy(example.supervised).nonzero().squeeze(1)
        positions.append(index * width + target_at - 1)
        targets.append(ids[target_at])
    rows = tuple(example.row for example in examples)
    n_tokens = sum(len(example.input_ids) for example in examples)
    return Batch(input_ids, torch.cat(positions), torch.cat(targets), rows, n_tokens)


def _labelled(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """A classifier's rows, padded on the right and masked: an encoder looks at what comes after a token as well."""
    lengths = [len(example.input_ids) for example in examples]
    input_ids = torch.full((len(examples), max(lengths)), pad_token_id, dtype=torch.int64)
    mask, types = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    positions, targets = [], []
    for index, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        assert example.labels is not None
        input_ids[index, :length] = torch.from_numpy(example.input_ids).long()
        mask[index, :length] = 1
        if example.token_types is not None:
            types[index, :length] = torch.from_numpy(example.token_types).long()
        labels = torch.from_numpy(example.labels)
        if example.is_tagged:
            at = torch.from_numpy(example.supervised).nonzero().squeeze(1)
            positions.append(index * max(lengths) + at)
            targets.append(labels[at])
        else:
            positions.append(torch.tensor([index]))
            targets.append(labels if labels.dtype == torch.int64 else labels[None])
    has_types = any(example.token_types is not None for example in examples)
    return Batch(
        input_ids,
        torch.cat(positions),
        torch.cat(targets),
        tuple(example.row for example in examples),
        sum(lengths),
        attention_mask=mask,
        token_type_ids=types if has_types else None,
    )


def _concatenated(examples: Sequence[Example]) -> Batch:
    lengths = tuple(len(example.input_ids) for example in examples)
    input_ids = torch.from_numpy(np.concatenate([example.input_ids for example in examples])).long()
    # a row's first token is never supervised: the position before it belongs to its own row
    target_at = torch.from_numpy(np.concatenate([example.supervised for example in examples])).nonzero().squeeze(1)
    return Batch(
        input_ids[None],
        target_at - 1,
        input_ids[target_at],
        tuple(example.row for example in examples),
        len(input_ids),
        lengths,
        torch.cat([torch.arange(length) for length in lengths])[None],
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
    )


@dataclass(frozen=True)
class StepRows:
    """The rows of one optimizer step, and what is counted of them.

    Attributes:
        step: counted from 1.
        shares: the micro-batches, each as what every process has of it. Where rows are left out a micro-batch is
            smaller, and may be empty; a share may be empty at the end of an epoch too.
        divisor: what the loss is divided by, where these are a part of a step; None: what they count.
    """

    step: int
    shares: Sequence[Sequence[Sequence[Example]]]
    divisor: float | None = None

    def own(self, rank: int) -> list[Sequence[Example]]:
        """One process's share of each micro-batch."""
        return [shares[rank] for shares in self.shares]

    def alone(self, rank: int, micro_batch: int, examples: Sequence[Example]) -> StepRows:
        """These examples of one process in one micro-batch, and no others; they weigh what they weigh in the step."""
        shares = [[[]] * (rank + 1)] * micro_batch + [[*[[]] * rank, examples]]
        return StepRows(self.step, shares, self.weight)

    @cached_property
    def examples(self) -> list[Example]:
        """All of them, in the order of the micro-batches and in each of the ranks."""
        return [example for shares in self.shares for share in shares for example in share]

    @cached_property
    def n_supervised(self) -> int:
        """Tokens that are trained on, over all processes."""
        return sum(example.n_supervised for example in self.examples)

    @property
    def n_supervised_squared(self) -> int:
        """Sum over the shares of the square of the tokens that each trains on."""
        return sum(sum(one.n_supervised for one in share) ** 2 for shares in self.shares for share in shares)

    @property
    def weight(self) -> float:
        """What the loss is divided by."""
        return sum(example.counts for example in self.examples) if self.divisor is None else self.divisor

    @cached_property
    def n_tokens(self) -> int:
        """Tokens without the padding, over all processes."""
        return sum(len(example.input_ids) for example in self.examples)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row; 0 where there is none."""
        return max((len(example.input_ids) for example in self.examples), default=0)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Source index of each row."""
        return tuple(example.row for example in self.examples)


@dataclass(frozen=True)
class Plan:
    """The order of a whole run. Its unit is a row, or with packing a bin of rows.

    Attributes:
        dataset: the training rows.
        batch_size: units in a micro-batch of one process.
        accumulation: micro-batches of one process in a step.
        seed: of the order.
        world_size: number of processes.
        skip: source indices of rows that are left out where their turn comes; the order of the others stays.
        group_by_length: whether rows of similar length come in one step, the longest first. Bins are alike already.
        begins_after: the step after which the rows begin from the first again.
        bin_tokens: most tokens in a bin; None: rows are not packed.
    """

    dataset: Dataset
    batch_size: int
    accumulation: int
    seed: int
    world_size: int = 1
    skip: frozenset[int] = frozenset()
    group_by_length: bool = False
    begins_after: int = 0
    bin_tokens: int | None = None
    _units: dict[int, Sequence[tuple[int, ...]]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def units_per_step(self) -> int:
        return self.batch_size * self.accumulation * self.world_size

    @cached_property
    def _lengths(self) -> list[int]:
        return [len(example.input_ids) for example in self.dataset.examples]

    @cached_property
    def _bins(self) -> list[tuple[int, ...]]:
        """The lengths of the rows in each bin: the same in every epoch, and so is the number of bins."""
        assert self.bin_tokens is not None
        return fill_bins(self._lengths, self.bin_tokens)

    @cached_property
    def _n_units(self) -> int:
        return len(self.dataset.examples) if self.bin_tokens is None else len(self._bins)

    @cached_property
    def most_rows(self) -> int:
        """Rows that a micro-batch of one process has at most."""
        rows_of_unit = 1 if self.bin_tokens is None else max(len(lengths) for lengths in self._bins)
        return min(self.batch_size, self._n_units) * rows_of_unit

    @cached_property
    def most_micro_batches(self) -> int:
        """Micro-batches that a step of one process has at most: an epoch may have fewer than are asked for."""
        return min(self.accumulation, math.ceil(math.ceil(self._n_units / self.batch_size) / self.world_size))

    @cached_property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._n_units / self.units_per_step)

    def n_steps(self, num_train_epochs: float, max_steps: int) -> int:
        """Length of the run in optimizer steps; `max_steps` > 0 wins, as in transformers."""
        return max_steps if max_steps > 0 else math.ceil(num_train_epochs * self.steps_per_epoch)

    def rows(self, step: int) -> StepRows:
        """The rows of a step, counted from 1."""
        return StepRows(step, self.shares(step))

    def micro_batches(self, step: int) -> list[list[Example]]:
        """The micro-batches of a step, each over all processes: rank 0's share first."""
        return [[example for share in shares for example in share] for shares in self.shares(step)]

    def shares(self, step: int) -> list[list[list[Example]]]:
        """The micro-batches of a step, each as what every process has of it."""
        behind = step > self.begins_after
        epoch, within = divmod(step - 1 - behind * self.begins_after, self.steps_per_epoch)
        chosen = self.units(epoch)[within * self.units_per_step :][: self.units_per_step]
        slices = [chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size)]
        shares = [self.kept(self.dataset.examples[i] for unit in units for i in unit) for units in slices]
        n_micro = math.ceil(len(shares) / self.world_size)
        shares += [[]] * (n_micro * self.world_size - len(shares))
        return [shares[i * self.world_size :][: self.world_size] for i in range(n_micro)]

    def kept(self, examples: Iterable[Example]) -> list[Example]:
        """Those that are not left out."""
        return [example for example in examples if example.row not in self.skip]

    def n_rows(self, n_steps: int) -> int:
        """Rows of the first steps, as many in each step as on average over an epoch where bins hold them."""
        if self.bin_tokens is None:
            return n_steps * self.units_per_step
        return round(n_steps * self.units_per_step * len(self.dataset.examples) / len(self._bins))

    def units(self, epoch: int) -> Sequence[tuple[int, ...]]:
        """Indices of the rows of each unit in the order of one epoch (from 0)."""
        if epoch not in self._units:
            if len(self._units) > 1:
                del self._units[min(self._units)]
            self._units[epoch] = self._ordered(epoch)
        return self._units[epoch]

    def _ordered(self, epoch: int) -> Sequence[tuple[int, ...]]:
        if self.bin_tokens is not None:
            order = epoch_order(len(self._lengths), self.seed, epoch)
            return epoch_bins(self._bins, self._lengths, order, random.Random(f"bins-{self.seed}-{epoch}"))
        if self.group_by_length:
            return [(i,) for i in grouped_order(self._lengths, self.units_per_step, self.seed, epoch)]
        return [(i,) for i in epoch_order(len(self._lengths), self.seed, epoch)]

    def fingerprint(self) -> str:
        """16 hex digits of the rows' content and order in the first epoch."""
        order = tuple(self.units(0) if self.bin_tokens is not None else (i for unit in self.units(0) for i in unit))
        text = f"{self.dataset.fingerprint()} {self.batch_size} {self.accumulation} {self.world_size} {order}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def epoch_order(n_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The permutation of one epoch. Python's generator: the same on every version and platform."""
    order = list(range(n_rows))
    random.Random(f"order-{seed}-{epoch}").shuffle(order)
    return tuple(order)


def grouped_order(lengths: Sequence[int], units_per_step: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The same with rows of similar length in each step, as transformers' group_by_length has it."""
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed}-{epoch}".encode()).digest()[:7], "big")
    )
    return tuple(get_length_grouped_indices(list(lengths), units_per_step, generator=generator))


def in_batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Evaluation batches, longest rows first: the batch that needs most memory fails first, padding is least."""
    by_length = sorted(examples, key=lambda example: (-len(example.input_ids), example.row))
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]
