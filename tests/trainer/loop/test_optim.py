from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lora_train.trainer.config.schema import TrainingSection
from lora_train.trainer.loop.lr_schedule import lr_table
from lora_train.trainer.loop.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.optimization import Adafactor

ON_DEVICE = ["adamw_torch_fused", "sgd"]
OPTIMIZERS = [*ON_DEVICE, "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor"]


# bool [], what the latch says on a healthy run
GO = torch.tensor(False)


def parameters() -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(0)
    return {"lora_A": torch.nn.Parameter(torch.randn(8, 600)), "bias": torch.nn.Parameter(torch.randn(5))}


def set_gradients(params: dict[str, torch.nn.Parameter], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


def section(**changes) -> TrainingSection:
    return TrainingSection(**{"learning_rate": 0.01, "optim": "adamw_torch_fused", **changes})


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_scaled_clipped_step_equals_plain_torch(optim):
    ours, theirs = parameters(), parameters()
    training = section(optim=optim, weight_decay=0.1, max_grad_norm=0.5)
    optimizer = Optimizer(ours, training, [0.01, 0.005, 0.0025])
    groups = [{"params": theirs["lora_A"], "weight_decay": 0.1}, {"params": theirs["bias"], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01)
    for step, learning_rate in enumerate([0.01, 0.005, 0.0025]):
        set_gradients(ours, step, scale=1024.0)
        norm, found_inf = optimizer.step(optimizer.gradient_rows(), torch.tensor(1024.0), GO)
        set_gradients(theirs, step)
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        for group in reference.param_groups:
            group["lr"] = learning_rate
        reference.step()
        assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
        assert found_inf.item() == 0.0
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("optim", "reference"),
    [
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=0.01)),
        ("adafactor", lambda groups: Adafactor(groups, lr=0.01, scale_parameter=False, relative_step=False)),
        ("paged_adamw_32bit", lambda groups: torch.optim.AdamW(groups, lr=0.01)),
    ],
)
def test_other_optimizers_step_as_their_own_classes_do(optim, reference):
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(ours, section(optim=optim, weight_decay=0.1), [0.01, 0.01, 0.01])
    own = reference(
        [{"params": theirs["lora_A"], "weight_decay": 0.1}, {"params": theirs["bias"], "weight_decay": 0.0}]
    )
    for step in range(3):
        set_gradients(ours, step, scale=1024.0)
        optimizer.step(optimizer.gradient_rows(), torch.tensor(1024.0), GO)
        set_gradients(theirs, step)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        own.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_non_finite_gradients_are_skipped_and_do_not_move_the_schedule(optim):
    params = parameters()
    optimizer = Optimizer(params, section(optim=optim), [0.1, 0.01])
    before = {name: parameter.detach().clone() for name, parameter in params.items()}
    set_gradients(params, 0)
    params["bias"].grad = torch.tensor([1.0, 2.0, 3.0, float("nan"), 4.0])
    norm, found_inf = optimizer.step(optimizer.gradient_rows(), torch.tensor(1.0), GO)
    assert (math.isnan(norm.item()), found_inf.item(), optimizer.updates.item()) == (True, 1.0, 0)
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert all(parameter.grad is None for parameter in params.values())
    set_gradients(params, 1)
    optimizer.step(optimizer.gradient_rows(), torch.tensor(1.0), GO)
    moved = (params["bias"] - before["bias"]).abs()
    if optim == "sgd":  # by the learning rate times the clipped gradient
        assert 0 < moved.norm().item() < 0.1
    else:  # Adam's first step moves every value by the learning rate of update 0
        torch.testing.assert_close(moved, torch.full((5,), 0.1), rtol=1e-3, atol=0)
    assert optimizer.updates.item() == 1


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_state_continues_bit_for_bit(optim):
    straight, resumed = parameters(), parameters()
    table = [0.01] * 6
    optimizer, first = Optimizer(straight, section(optim=optim), table), Optimizer(resumed, section(optim=optim), table)
    for step in range(6):
        set_gradients(straight, step)
        optimizer.step(optimizer.gradient_rows(), torch.tensor(1.0), GO)
    for step in range(3):
        set_gradients(resumed, step)
        first.step(first.gradient_rows(), torch.tensor(1.0), GO)
    second = Optimizer(resumed, section(optim=optim), table)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for step in range(3, 6):
        set_gradients(resumed, step)
        second.step(second.gradient_rows(), torch.tensor(1.0), GO)
    assert second.updates.item() == 6
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


class ItemCounter(TorchDispatchMode):
    """Counts the reads of a device value on the host; on CUDA each of them waits."""

    n_items = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_items += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_fused_step_reads_nothing_on_the_host():
    reads = {}
    for optim in ("adamw_torch_fused", "adamw_torch"):
        params = parameters()
        optimizer = Optimizer(params, section(optim=optim), [0.1, 0.1])
        set_gradients(params, 0)
        rows = optimizer.gradient_rows()
        with ItemCounter() as counter:
            optimizer.step(rows, torch.tensor(1.0), GO)
        reads[optim] = counter.n_items
    assert reads["adamw_torch_fused"] == 0 < reads["adamw_torch"]


def test_only_the_fused_optimizer_never_waits():
    waits = {optim: Optimizer(parameters(), section(optim=optim), [0.1]).waits for optim in OPTIMIZERS}
    assert [optim for optim in OPTIMIZERS if not waits[optim]] == ON_DEVICE
    kinds = [type(Optimizer(parameters(), section(optim=optim), [0.1])._inner).__name__ for optim in OPTIMIZERS]
    assert kinds == ["AdamW", "SGD", "AdamW", "AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit", "Adafactor"]


def test_table_of_learning_rates():
    linear = lr_table(section(learning_rate=1.0, warmup_steps=2), 6)
    assert linear == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert lr_table(section(learning_rate=1.0, warmup_ratio=0.25, lr_scheduler_type="constant_with_warmup"), 4) == [
        0.0, 1.0, 1.0, 1.0, 1.0,
    ]  # fmt: skip
    cosine = lr_table(section(learning_rate=1.0, lr_scheduler_type="cosine"), 4)
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)])


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_held_step_changes_nothing(optim):
    params = parameters()
    optimizer = Optimizer(params, section(optim=optim), [0.1, 0.1, 0.1])
    set_gradients(params, 0)
    optimizer.step(optimizer.gradient_rows(), torch.tensor(1.0), GO)
    before = {name: parameter.detach().clone() for name, parameter in params.items()}
    state = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    set_gradients(params, 1)
    norm, found_inf = optimizer.step(optimizer.gradient_rows(), torch.tensor(1.0), ~GO)
    assert (norm.isfinite().item(), found_inf.item()) == (True, 1.0)
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert all(torch.equal(tensor, state[name]) for name, tensor in optimizer.state_dict().items())
