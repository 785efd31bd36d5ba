from __future__ import annotations

import torch
from lora_train.instrument.record.loss_scale import LossScale

GOOD, BAD = torch.tensor(0.0), torch.tensor(1.0)
GO, HOLD = torch.tensor(False), torch.tensor(True)


def scales(scaler: LossScale, found_infs: list[torch.Tensor]) -> list[float]:
    seen = []
    for found_inf in found_infs:
        scaler.update(found_inf, GO)
        seen.append(scaler.scale.item())
    return seen


def test_follows_torchs_grad_scaler():
    ours = LossScale("cpu", initial=1024.0, growth_interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for bad in [0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1]:
        ours.update(BAD if bad else GOOD, GO)
        parameter.grad = torch.full((1,), float("inf") if bad else 1.0)
        theirs.scale(torch.ones(1))
        theirs.step(optimizer)
        theirs.update()
        assert ours.scale.item() == theirs.get_scale()


def test_never_falls_below_the_floor():
    scaler = LossScale("cpu", initial=4.0, min_scale=1.0)
    assert scales(scaler, [BAD] * 5) == [2.0, 1.0, 1.0, 1.0, 1.0]


def test_hysteresis_waits_before_backing_off():
    scaler = LossScale("cpu", initial=16.0, hysteresis=2, growth_interval=2)
    assert scales(scaler, [BAD, BAD, BAD, GOOD, GOOD]) == [16.0, 8.0, 4.0, 4.0, 8.0]


def test_static_scale_stays():
    scaler = LossScale("cpu", initial=128.0, dynamic=False)
    assert scales(scaler, [BAD, GOOD, BAD]) == [128.0] * 3


def test_state_continues_where_it_was():
    scaler = LossScale("cpu", initial=8.0, growth_interval=3)
    scales(scaler, [GOOD, GOOD])
    other = LossScale("cpu", initial=2.0, growth_interval=3)
    other.load_state_dict(scaler.state_dict())
    assert scales(other, [GOOD]) == [16.0]


def test_a_held_step_changes_nothing():
    scaler = LossScale("cpu", initial=16.0, hysteresis=2, growth_interval=2)
    scaler.update(GOOD, GO)
    before = {name: tensor.clone() for name, tensor in scaler.state_dict().items()}
    for found_inf in (BAD, GOOD, BAD):
        scaler.update(found_inf, HOLD)
        assert scaler.state_dict() == before


def test_it_can_fall_until_the_floor():
    scaler = LossScale("cpu", initial=4.0, min_scale=1.0)
    assert [bool(scaler.can_fall())] + [bool(scaler.update(BAD, GO) or scaler.can_fall()) for _ in range(3)] == [
        True,
        True,
        False,
        False,
    ]
    assert not LossScale("cpu", initial=128.0, dynamic=False).can_fall()
