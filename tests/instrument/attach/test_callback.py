"""The instrument inside the real Trainer and inside a loop written by hand, against what they computed themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from lora_train.instrument import Instrument, InstrumentCallback, load_run
from lora_train.instrument.judge.explain import explain, read_history
from lora_train.instrument.read.schema import STEP_COLUMNS
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from ...conftest import ON_GPU

SEED = 3


def lora(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def rows(n: int = 24, length: int = 12) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 500, (n, length), generator=generator).tolist()
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * length} for row in ids]


class Remembers(Trainer):
    """Keeps the true loss and the gradients of every step as they were before clipping."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.__dict__.setdefault("seen", []).append((float(loss), grads))
        return loss


def train(model: Any, out: Path, callback: InstrumentCallback | None, scaler: bool = False, **arguments: Any) -> Any:
    values = {"max_steps": 6, "logging_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    given: dict[str, Any] = {
        **values,
        "report_to": [],
        "save_strategy": "no",
        "seed": SEED,
        "disable_tqdm": True,
        "use_cpu": not ON_GPU,
    }
    trainer = Remembers(model, TrainingArguments(str(out), **{**given, **arguments}), train_dataset=rows())  # pyright: ignore[reportArgumentType]
    if scaler:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
        trainer.accelerator.native_amp = True
        trainer.accelerator.state._mixed_precision = "fp16"
    if callback is not None:
        trainer.add_callback(callback)
    trainer.train()
    return trainer


@pytest.mark.parametrize("fuse", [False, True])
def test_it_records_what_the_trainer_computed_and_leaves_it_alone(tiny_models, tmp_path, fuse, device):
    plain = train(
        lora(tiny_models["llama"]), tmp_path / "plain", None, gradient_accumulation_steps=2, max_grad_norm=0.01
    )
    callback = InstrumentCallback(tmp_path / "run", fuse=fuse, histogram_every=3, probe_every=3)
    watched = train(
        lora(tiny_models["llama"]), tmp_path / "out", callback, gradient_accumulation_steps=2, max_grad_norm=0.01
    )

    # a layer's share of a gradient is a view, and views are summed in another order; a GPU's attention sums in any
    tolerance = 1e-3 if device == "cuda" else 1e-4 if fuse else 1e-6
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    metrics = load_run(tmp_path / "run").metrics()
    logged = [entry for entry in watched.state.log_history if "loss" in entry]
    assert tuple(metrics.columns) == ("start", *STEP_COLUMNS)
    assert metrics["save_seconds_total"].isna().all()  # the Trainer saves, and nobody tells how long it took
    assert metrics["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert metrics["loss"].tolist() == pytest.approx([entry["loss"] for entry in logged], abs=2e-4)
    assert metrics["grad_norm"].tolist() == pytest.approx([entry["grad_norm"] for entry in logged], rel=1e-4)
    assert metrics["learning_rate"].tolist() == pytest.approx([entry["learning_rate"] for entry in logged])
    assert metrics["tokens"].tolist() == [96] * 6
    assert metrics["supervised_tokens"].tolist() == [88] * 6

    name = "model.layers.1.mlp.down_proj"
    recorded = load_run(tmp_path / "run").stats(rf"^{name}:lora_B\.grad$", ["norm"])["norm"].tolist()
    of_steps = [grads for _, grads in watched.seen[1::2]]
    expected = [float(grads[f"base_model.model.{name}.lora_B.default.weight"].double().norm()) for grads in of_steps]
    assert recorded == pytest.approx(expected, rel=1e-6)
    tensors = {site.rpartition(":")[2] for site in load_run(tmp_path / "run").sites["name"]}
    assert {"in", "out", "grad_out", "grad_in", "lora_A.grad", "lora_B.grad"} <= tensors
    assert load_run(tmp_path / "run").exponents(f"{name}:out", step=3) is not None
    assert any(finding.key == "explain.finished" for finding in explain(read_history(tmp_path / "run")))


def overflowing(folder: Path, dtype: torch.dtype) -> Any:
    """A model whose second MLP gives inf in fp16."""
    model = lora(folder, dtype)
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.down_proj.base_layer.weight.fill_(6e4)
        model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.fill_(30.0)
    return model


def test_the_silent_zero_is_caught_before_the_adapter_dies(tiny_models, tmp_path, capsys):
    model = overflowing(tiny_models["llama"], torch.float16)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = train(model, tmp_path / "out", InstrumentCallback(tmp_path / "run"))
    assert trainer.state.global_step == 1  # stopped
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad)
    (diagnosis,) = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("incidents/*/diagnosis.json")]
    assert (diagnosis["kind"], diagnosis["step"]) == ("forward_overflow", 1)
    assert diagnosis["module"].startswith("model.layers.1.mlp")
    assert load_run(tmp_path / "run").metrics()["loss"].isna().tolist() == [True]
    assert "COLLAPSE at step 1: overflow in the forward pass, model.layers.1.mlp" in capsys.readouterr().out


def test_under_a_scaler_losses_are_unscaled_and_skips_are_seen(tiny_models, tmp_path):
    trainer = train(lora(tiny_models["gpt_neox"]), tmp_path / "out", InstrumentCallback(tmp_path / "run"), scaler=True)
    metrics = load_run(tmp_path / "run").metrics()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert metrics["loss"].tolist() == pytest.approx([entry["loss"] for entry in logged], abs=2e-3)
    assert metrics["loss_scale"].tolist() == [65536.0] * 6
    assert metrics["grad_norm"].tolist() == pytest.approx([entry["grad_norm"] for entry in logged], rel=2e-2)


class Smoothed(Remembers):
    """Computes the loss outside of the model, after a pass of its own over the batch."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        with torch.no_grad():
            model(**inputs)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
        return (loss, None) if return_outputs else loss


def test_a_loss_that_the_model_did_not_compute_is_recorded(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.Remembers", Smoothed)
    callback = InstrumentCallback(tmp_path / "run", fuse=True)
    trainer = train(lora(tiny_models["llama"]), tmp_path / "out", callback, max_grad_norm=0.01)
    assert isinstance(trainer, Smoothed)
    metrics = load_run(tmp_path / "run").metrics()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert metrics["loss"].tolist() == pytest.approx([entry["loss"] for entry in logged], abs=2e-4)
    assert metrics["grad_norm"].tolist() == pytest.approx([entry["grad_norm"] for entry in logged], rel=1e-4)
    assert metrics["epoch"].tolist() == pytest.approx([step / 6 for step in range(6)])


def test_a_run_that_goes_on_says_so_and_a_resumed_one_goes_on_counting(tiny_models, tmp_path):
    callback = InstrumentCallback(tmp_path / "run", stop=False)
    train(overflowing(tiny_models["llama"], torch.float16), tmp_path / "out", callback, max_steps=7)
    keys = [finding.key for finding in explain(read_history(tmp_path / "run")) if finding.topic == "outcome"]
    assert keys.count("explain.attached_went_on") == 5  # no more are diagnosed
    assert not {"explain.stopped", "explain.attached_stopped"} & set(keys)
    first = train(lora(tiny_models["llama"]), tmp_path / "two", None, save_strategy="steps", save_steps=3)
    again = Remembers(lora(tiny_models["llama"]), first.args, train_dataset=rows())  # pyright: ignore[reportArgumentType]
    again.add_callback(InstrumentCallback(tmp_path / "again"))
    again.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-3"))
    assert load_run(tmp_path / "again").metrics()["step"].tolist() == [4, 5, 6]


def test_a_training_that_failed_leaves_nothing_behind(tiny_models, tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2 and not tried:
                tried.append(True)
                raise MemoryError("for the test")

    tried: list[bool] = []
    backward = Accelerator.backward
    given = TrainingArguments(str(tmp_path / "out"), max_steps=3, report_to=[], logging_steps=1, use_cpu=True)
    trainer = Remembers(lora(tiny_models["llama"]), given, train_dataset=rows())  # pyright: ignore[reportArgumentType]
    trainer.add_callback(InstrumentCallback(tmp_path / "run"))
    trainer.add_callback(Fails())
    with pytest.raises(MemoryError):
        trainer.train()
    trainer.train()
    assert Accelerator.backward is backward
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert load_run(tmp_path / "run-2").metrics()["loss"].tolist() == pytest.approx(logged, abs=2e-4)


def test_a_micro_batch_must_be_begun(tiny_models, tmp_path):
    model = lora(tiny_models["llama"])
    with Instrument(model, tmp_path / "run") as instrument:
        step = instrument.begin_step()
        with pytest.raises(ValueError, match="begin_micro_batch"):
            step.micro_batch(model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss)


def test_a_loop_of_ones_own(tiny_models, tmp_path):
    model = lora(tiny_models["llama"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = {name: torch.tensor([row[name] for row in rows(4)]) for name in ("input_ids", "labels")}
    losses = []
    with Instrument(model, tmp_path / "run") as instrument:
        for _ in range(4):
            with instrument.step(learning_rate=1e-3) as step:
                step.begin_micro_batch()
                loss = model(**batch).loss
                step.micro_batch(loss, batch)
                loss.backward()
            assert step.finite
            losses.append(step.loss)
            optimizer.step()
            optimizer.zero_grad()
        instrument.evaluation({"eval_loss": 2.0, "eval_runtime": 1.0})
    run = load_run(tmp_path / "run")
    assert run.metrics()["loss"].tolist() == losses
    assert losses[-1] < losses[0]
    assert not any("hook" in key and value for key, value in model.__dict__.items() if "forward" in key)
    assert read_history(tmp_path / "run").evals["eval_loss"].tolist() == [2.0]


def test_a_second_run_does_not_overwrite_the_first(tiny_models, tmp_path):
    for _ in range(2):
        Instrument(lora(tiny_models["llama"]), tmp_path / "run").close()
        (tmp_path / "run" / "metrics.jsonl").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2"]


class StopsAtThree(TrainerCallback):
    """An early stop."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= 3


def test_a_training_that_another_callback_ends_early_has_come_to_an_end(tiny_models, tmp_path):
    callback = InstrumentCallback(tmp_path / "run")
    model = lora(tiny_models["llama"])
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path / "out"), max_steps=6, report_to=[], save_strategy="no", use_cpu=not ON_GPU),
        train_dataset=rows(),  # pyright: ignore[reportArgumentType]
        callbacks=[callback, StopsAtThree()],
    )
    trainer.train()
    history = read_history(tmp_path / "run")
    assert (history.finished, history.stopped_early, history.last_step, history.planned) == (True, True, 3, 6)
    assert [f.key for f in explain(history) if f.topic == "outcome"] == ["explain.stopped_early"]
