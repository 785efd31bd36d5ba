"""Adapters that are added, switched and deleted, and layers that are unfrozen, while a run is recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_train.instrument import InstrumentCallback, load_run
from peft import LoraConfig
from transformers import TrainerCallback

from .test_callback import lora
from .test_peers import norms, trainer


class Between(TrainerCallback):
    """Does something to the model after the second step."""

    def __init__(self, does: Any):
        self.does = does

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.does(kwargs["model"], kwargs["optimizer"])


def _second(model: Any, **more: Any) -> None:
    torch.manual_seed(7)
    given = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **more}
    model.add_adapter("second", LoraConfig(**given))


def _switch(model: Any, optimizer: Any, **more: Any) -> None:
    _second(model, **more)
    model.set_adapter("second")
    optimizer.param_groups[0]["params"] += [p for n, p in model.named_parameters() if ".second." in n]


def _both(model: Any, optimizer: Any) -> None:
    _second(model)
    model.base_model.set_adapter(["default", "second"])
    optimizer.param_groups[0]["params"] += [p for n, p in model.named_parameters() if ".second." in n]


def _back(model: Any, optimizer: Any) -> None:
    _switch(model, optimizer)
    model.set_adapter("default")


def _deleted(model: Any, optimizer: Any) -> None:
    _switch(model, optimizer)
    model.delete_adapter("default")


def _taken_apart(model: Any, _optimizer: Any) -> None:
    model.merge_adapter()
    model.unmerge_adapter()
    with model.disable_adapter(), torch.no_grad():
        model(input_ids=torch.arange(4, 16)[None])
    model.eval()
    model.train()


def _unfrozen(model: Any, optimizer: Any) -> None:
    weight = model.get_base_model().model.layers[0].input_layernorm.weight.requires_grad_(True)
    optimizer.param_groups[0]["params"].append(weight)


BETWEEN: dict[str, Any] = {
    "added": lambda model, _: _second(model),
    "switched": _switch,
    "switched to DoRA": lambda model, optimizer: _switch(model, optimizer, use_dora=True),
    "switched back": _back,
    "both": _both,
    "deleted": _deleted,
    "taken apart": _taken_apart,
    "unfrozen": _unfrozen,
    "16-bit": lambda model, _: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("does", BETWEEN)
def test_adapters_change_while_they_are_trained(tiny_models, tmp_path, capsys, does, fuse):
    """The training ends as without the callback, and every line has the norm that the Trainer clips."""
    weights = []
    for callbacks in ([], [InstrumentCallback(tmp_path / "run", fuse=fuse, probe_every=2, histogram_every=2)]):
        training = trainer(lora(tiny_models["llama"]), tmp_path / "out", max_steps=5, optim="sgd")
        for callback in [Between(BETWEEN[does]), *callbacks]:
            training.add_callback(callback)
        training.train()
        weights.append(dict(training.model.named_parameters()))
    plain, watched = weights
    assert plain.keys() == watched.keys()
    tolerance = 0.02 if does == "16-bit" else 1e-4
    for name, value in plain.items():
        torch.testing.assert_close(watched[name], value, rtol=tolerance, atol=tolerance)
    run = load_run(tmp_path / "run")
    logged = [entry for entry in training.state.log_history if "grad_norm" in entry]
    assert run.metrics()["grad_norm"].tolist() == pytest.approx([entry["grad_norm"] for entry in logged], rel=1e-2)
    assert run.metrics()["loss"].tolist() == pytest.approx([entry["loss"] for entry in logged], abs=1e-3)
    assert all(value > 0 for value in norms(tmp_path / "run", r"layers\.1\.mlp\.down_proj:lora_B\.grad$"))
    lines = capsys.readouterr().out
    assert lines.count("From step 3 on parameters are trained") == (does in ("both", "switched to DoRA", "unfrozen"))
    assert "from here on" not in lines
