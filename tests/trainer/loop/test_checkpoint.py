from __future__ import annotations

import json

import pytest
import torch
from lora_train.trainer.errors import UserError
from lora_train.trainer.loop.checkpoint import (
    NotFinite,
    checkpoints,
    drop_partial,
    load_checkpoint,
    save_checkpoint,
    set_aside_after,
)
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model.load import trainable
from lora_train.trainer.saved.state import Progress
from lora_train.trainer.saved.sums import ADAPTER, OPTIMIZER, STATE, SUMS
from safetensors.torch import load_file, save_file

from .test_train import make_components, make_config


@pytest.fixture(scope="module")
def trained(tiny_models):
    components = make_components(make_config(tiny_models["gpt_neox"]))
    for step in (1, 2):
        train_step(components, components.plan.rows(step))
    return components


def save(components, folder, step: int, keep: int | None = None):
    progress = Progress(step=step, skipped=1, train_seconds=2.5)
    return save_checkpoint(folder, components, progress, components.config.model_dump(), keep)


def test_checkpoints_of_the_best_evaluations_stay_beside_the_newest(trained, tmp_path):
    settings = trained.config.model_dump()
    for step in (1, 2, 3, 4, 5):
        save_checkpoint(tmp_path, trained, Progress(step=step), settings, 1, best=[3, 1])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3", "checkpoint-5"]
    save_checkpoint(tmp_path, trained, Progress(step=6), settings, None, best=[3])  # no limit: nothing is dropped
    assert len(checkpoints(tmp_path)) == 4


def load(folder, components):
    return load_checkpoint(folder, components)


def test_holds_safetensors_and_json_only(trained, tmp_path):
    folder = save(trained, tmp_path, 2)
    names = {path.name for path in folder.iterdir()}
    assert names == {ADAPTER, "adapter_config.json", OPTIMIZER, STATE, SUMS}
    state = json.loads((folder / STATE).read_text())
    assert (state["step"], state["schema_version"], state["config"]) == (2, 1, trained.config.model_dump())
    assert not list(tmp_path.glob("*.tmp"))


def test_restores_adapter_optimizer_scaler_and_counters(trained, tiny_models, tmp_path, device):
    folder = save(trained, tmp_path, 2)
    other = make_components(make_config(tiny_models["gpt_neox"], seed=7))
    assert load(folder, other) == Progress(step=2, skipped=1, train_seconds=2.5)
    for name, parameter in trainable(trained.model).items():
        assert torch.equal(parameter, trainable(other.model)[name])
    ours, theirs = trained.optimizer.state_dict(), other.optimizer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert other.optimizer.updates.item() == 2


def test_oldest_are_dropped_only_after_the_new_one_stands(trained, tmp_path):
    for step in (1, 2, 10, 9):
        save(trained, tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_unfinished_folders_are_not_checkpoints(trained, tmp_path):
    save(trained, tmp_path, 3)
    (tmp_path / "checkpoint-4.tmp").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]


def test_a_non_finite_adapter_is_never_written(tiny_models, tmp_path):
    components = make_components(make_config(tiny_models["gpt_neox"]))
    save(components, tmp_path, 1, keep=1)
    name, parameter = next(iter(trainable(components.model).items()))
    with torch.no_grad():
        parameter[0, 0] = float("inf")
    with pytest.raises(NotFinite, match=name):
        save(components, tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_non_finite_optimizer_is_never_written(tiny_models, tmp_path):
    components = make_components(make_config(tiny_models["gpt_neox"]))
    train_step(components, components.plan.rows(1))
    next(iter(components.optimizer._inner.state.values()))["exp_avg"][0, 0] = float("nan")
    with pytest.raises(NotFinite, match="exp_avg"):
        save(components, tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(trained, tmp_path):
    folder = save(trained, tmp_path, 3)
    folder.rename(tmp_path / "checkpoint-3.old")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]
    save(trained, tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("file", [ADAPTER, OPTIMIZER, STATE])
@pytest.mark.parametrize("damage", ["missing", "torn", "foreign"])
def test_a_damaged_checkpoint_is_a_clear_error(trained, tiny_models, tmp_path, file, damage):
    folder = save(trained, tmp_path, 2)
    path = folder / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] if damage == "torn" else b"{}")
    with pytest.raises(UserError, match=r"is not a whole checkpoint|belongs to another"):
        load(folder, trained)


def test_another_models_checkpoint_is_refused(trained, tiny_models, tmp_path):
    folder = save(trained, tmp_path, 2)
    with pytest.raises(UserError, match="belongs to another model or adapter"):
        load(folder, make_components(make_config(tiny_models["llama"])))


def test_eight_bit_adams_shared_tables_are_saved(tiny_models, tmp_path, device):
    """r=64: matrices of 4096 values and more have 8-bit state, and bitsandbytes shares one table between them."""
    config = make_config(tiny_models["gpt_neox"], optim="paged_adamw_8bit")
    config = config.model_copy(update={"lora": config.lora.model_copy(update={"r": 64})})
    components, other = make_components(config), make_components(config)
    train_step(components, components.plan.rows(1))
    load(save(components, tmp_path, 1), other)
    assert any(value.dtype == torch.uint8 for value in components.optimizer.state_dict().values())
    slack = 1e-5 if device == "cuda" else 0.0  # a GPU's attention adds up its gradients in any order
    ours, theirs = (train_step(run, run.plan.rows(2)).tolist() for run in (components, other))
    assert ours == pytest.approx(theirs, rel=slack)
    for name, parameter in trainable(components.model).items():
        torch.testing.assert_close(parameter, trainable(other.model)[name], rtol=slack, atol=slack)


def test_an_abandoned_branch_is_set_aside_and_never_pruned_into(trained, tmp_path):
    for step in (2, 4, 6):
        save(trained, tmp_path, step)
    set_aside_after(tmp_path, 2, start=0)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    save(trained, tmp_path, 3, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    assert (tmp_path / "checkpoint-6.start-0" / STATE).exists()


def test_a_branch_can_be_abandoned_any_number_of_times(trained, tmp_path):
    for again in range(3):
        save(trained, tmp_path, 3)
        save(trained, tmp_path, 6 + again)
        save(trained, tmp_path, 9)
        set_aside_after(tmp_path, 3, start=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-3", "checkpoint-6.start-0", "checkpoint-7.start-0", "checkpoint-8.start-0",
        "checkpoint-9.start-0", "checkpoint-9.start-0.1", "checkpoint-9.start-0.2",
    ]  # fmt: skip


def test_what_ends_the_writing_leaves_nothing_half_written(trained, tmp_path, monkeypatch):
    save(trained, tmp_path, 3)
    for error in (KeyboardInterrupt, OSError):
        with monkeypatch.context() as patch:
            patch.setattr("lora_train.trainer.loop.checkpoint.write_sums", raises(error))
            with pytest.raises(error):
                save(trained, tmp_path, 4)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def raises(error: type[BaseException]):
    def fail(*_: object) -> None:
        raise error

    return fail


def test_what_a_kill_left_half_written_goes_with_the_next_start(trained, tmp_path):
    save(trained, tmp_path, 3)
    for name in ("checkpoint-4.tmp", "adapter.tmp", "mine.tmp"):
        (tmp_path / name).mkdir()
    drop_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "mine.tmp"]


def change(folder, file: str, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / file)
    tensors.pop(name)
    save_file(tensors | ({} if value is None else {name: value}), folder / file)


def test_tensors_that_would_end_a_step_later_are_refused_before_anything_is_restored(trained, tiny_models, tmp_path):
    other = make_components(make_config(tiny_models["gpt_neox"], seed=7))
    before = {name: parameter.clone() for name, parameter in trainable(other.model).items()}
    name = next(iter(before))
    wrong = [
        ("optimizer.updates", torch.tensor(10**12)),
        ("optimizer.updates", torch.tensor(-1)),
        ("optimizer.updates", torch.tensor([1, 1])),
        (f"optimizer.{name}.exp_avg", torch.zeros(3)),
        (f"optimizer.{name}.exp_avg_sq", None),
        (f"optimizer.{name}.step", None),
        (f"optimizer.{name}.step", torch.zeros(2)),
        ("loss_scale.scale", torch.zeros(2)),
        ("loss_scale.good_steps", None),
    ]
    for key, value in wrong:
        folder = save(trained, tmp_path, 2)
        change(folder, OPTIMIZER, key, value)
        with pytest.raises(UserError, match="belongs to another model or adapter"):
            load(folder, other)
        assert all(torch.equal(parameter, before[name]) for name, parameter in trainable(other.model).items())
