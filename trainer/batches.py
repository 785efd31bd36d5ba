"""Which rows each step sees, in which order, and their tensors.

The order is a function of the seed and the epoch alone, and any step's rows are found without visiting the
steps before it: a resumed run reads nothing twice. One step is `gradient_accumulation_steps` micro-batches on
each process; rank k takes the k-th slice of every micro-batch, so that two processes see the rows of one
process with twice the accumulation. The last step of an epoch may be smaller.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from .data import Dataset, Example


@dataclass(frozen=True)
class Batch:
    """The tensors of one micro-batch of B rows and S tokens, T of them supervised.

    Attributes:
        input_ids: int64 [B, S], padded on the right.
        positions: int64 [T], indices into the flattened [B * S] positions whose next token is supervised.
        targets: int64 [T], those next tokens.
        rows: source index of each row.
        n_tokens: tokens without the padding.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    rows: tuple[int, ...]
    n_tokens: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy does not wait."""
        if device.type == "cpu":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return Batch(move(self.input_ids), move(self.positions), move(self.targets), self.rows, self.n_tokens)


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pads examples on the right and gathers where the supervised targets are.

    Right padding needs no attention mask in a causal model: no real token looks at what comes after it.
    """
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


@dataclass(frozen=True)
class Plan:
    """The order of a whole run.

    Attributes:
        dataset: the training rows.
        batch_size: rows in a micro-batch of one process.
        accumulation: micro-batches of one process in a step.
        seed: of the order.
        world_size: number of processes.
        skip: source indices of rows that are left out where their turn comes; the order of the others stays.
        group_by_length: whether rows of similar length come in one step, the longest first.
        begins_after: the step after which the rows begin from the first again.
    """

    dataset: Dataset
    batch_size: int
    accumulation: int
    seed: int
    world_size: int = 1
    skip: frozenset[int] = frozenset()
    group_by_length: bool = False
    begins_after: int = 0
    _orders: dict[int, Sequence[int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.dataset.examples) / self.rows_per_step)

    def n_steps(self, num_train_epochs: float, max_steps: int) -> int:
        """Length of the run in optimizer steps; `max_steps` > 0 wins, as in transformers."""
        return max_steps if max_steps > 0 else math.ceil(num_train_epochs * self.steps_per_epoch)

    def step(self, step: int) -> list[list[Example]]:
        """The micro-batches of a step (counted from 1), each over all processes: rank 0's slice first.

        Where rows are left out a micro-batch is smaller, and may be empty.
        """
        behind = step > self.begins_after
        epoch, within = divmod(step - 1 - behind * self.begins_after, self.steps_per_epoch)
        order = self.order(epoch)
        chosen = [self.dataset.examples[i] for i in order[within * self.rows_per_step :][: self.rows_per_step]]
        size = self.batch_size * self.world_size
        micro_batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        return [[example for example in micro if example.row not in self.skip] for micro in micro_batches]

    def order(self, epoch: int) -> Sequence[int]:
        """The permutation of one epoch (from 0)."""
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            if self.group_by_length:
                lengths = [len(example.input_ids) for example in self.dataset.examples]
                self._orders[epoch] = grouped_order(lengths, self.rows_per_step, self.seed, epoch)
            else:
                self._orders[epoch] = epoch_order(len(self.dataset.examples), self.seed, epoch)
        return self._orders[epoch]

    def local(self, micro_batch: list[Example], rank: int) -> list[Example]:
        """One process's slice of a micro-batch; it may be empty at the end of an epoch."""
        return micro_batch[rank * self.batch_size : (rank + 1) * self.batch_size]

    def epoch_at(self, step: int) -> float:
        """Epochs completed after a step."""
        return step / self.steps_per_epoch

    def fingerprint(self) -> str:
        """16 hex digits of the rows' content and order in the first epoch."""
        order = tuple(self.order(0))
        text = f"{self.dataset.fingerprint()} {self.batch_size} {self.accumulation} {self.world_size} {order}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def epoch_order(n_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The permutation of one epoch. Python's generator: the same on every version and platform."""
    order = list(range(n_rows))
    random.Random(f"order-{seed}-{epoch}").shuffle(order)
    return tuple(order)


def grouped_order(lengths: Sequence[int], rows_per_step: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The same with rows of similar length in each step, as transformers' group_by_length has it."""
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed}-{epoch}".encode()).digest()[:7], "big")
    )
    return tuple(get_length_grouped_indices(list(lengths), rows_per_step, generator=generator))


def in_batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Evaluation batches, longest rows first: the batch that needs most memory fails first, padding is least."""
    by_length = sorted(examples, key=lambda example: (-len(example.input_ids), example.row))
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]
