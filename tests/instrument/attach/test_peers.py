"""The callback among what other trainers do to a model: reference passes, evaluation, copies, other adapters."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from lora_train.instrument import InstrumentCallback, load_run
from lora_train.instrument.judge.explain import explain, lines, read_history
from lora_train.instrument.show.report.data import report_data
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from ...conftest import ON_GPU
from .test_callback import lora, overflowing, rows

SITES = r"layers\.1\.mlp\.down_proj:(in|out|grad_out|grad_in)$"


def trainer(model: Any, out: Path, cls: type[Trainer] = Trainer, **arguments: Any) -> Any:
    values: dict[str, Any] = {
        "max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": not ON_GPU, **arguments,
    }  # fmt: skip
    data: Any = rows()
    return cls(model, TrainingArguments(str(out), **values), train_dataset=data, eval_dataset=data)


def norms(run: Path, sites: str = SITES) -> list[float]:
    return load_run(run).stats(sites, ["norm"])["norm"].tolist()


class AlsoLooks(Trainer):
    """After the policy's pass, and before its backward pass, the model is run in a way that is not trained."""

    how = ""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        out = model(**inputs)
        own: Any = self.model
        other = {name: value.flip(0)[:, 1:] for name, value in inputs.items()}
        if own.training:
            if self.how == "reference":
                with torch.no_grad(), own.disable_adapter():
                    model(**other)
            elif self.how == "no gradient":
                with torch.no_grad():
                    model(**other)
            elif self.how == "adapter off":
                with own.disable_adapter():
                    model(**other)
            elif self.how == "evaluation mode":
                own.eval()
                model(**other)
                own.train()
            elif self.how == "generation":
                own.eval()
                own.generate(input_ids=inputs["input_ids"], max_new_tokens=2, do_sample=False, pad_token_id=0)
                own.train()
        return (out.loss, out) if return_outputs else out.loss


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("how", ["reference", "no gradient", "adapter off", "evaluation mode", "generation"])
def test_a_pass_that_is_not_trained_records_nothing(tiny_models, tmp_path, how, fuse):
    for name, looks in (("alone", ""), ("both", how)):
        looking = trainer(lora(tiny_models["llama"]), tmp_path / "out", type("Looks", (AlsoLooks,), {"how": looks}))
        looking.add_callback(InstrumentCallback(tmp_path / name, fuse=fuse, histogram_every=2, probe_every=2))
        looking.train()
    alone, both = norms(tmp_path / "alone", "."), norms(tmp_path / "both", ".")
    assert len(alone) == 3 * len(load_run(tmp_path / "alone").sites)
    assert both == pytest.approx(alone, rel=1e-6, nan_ok=True)
    assert load_run(tmp_path / "both").metrics()["tokens"].tolist() == [48] * 3


class Pairs(Trainer):
    """Chosen and rejected answers, in two passes or in one."""

    at_once = True

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        halves = [inputs] if self.at_once else [{k: v[i : i + 2] for k, v in inputs.items()} for i in (0, 2)]
        logits = torch.cat([model(input_ids=half["input_ids"]).logits for half in halves])
        loss = -nn.functional.logsigmoid(logits[:2].mean() - logits[2:].mean())
        return (loss, None) if return_outputs else loss


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("fuse", [False, True])
def test_two_passes_of_one_loss_are_added_up(tiny_models, tmp_path, fuse, checkpointing):
    """Norms of two halves are that of the whole, with activations kept or computed again, in either way."""
    how: dict[str, Any] = {}
    if checkpointing is not None:
        how = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": checkpointing}}
    for name, at_once, more in (("one", True, {}), ("two", False, how)):
        pairs = trainer(lora(tiny_models["llama"]), tmp_path, type("P", (Pairs,), {"at_once": at_once}), **more)
        pairs.add_callback(InstrumentCallback(tmp_path / name, fuse=fuse, histogram_every=3))
        pairs.train()
    one, two = norms(tmp_path / "one"), norms(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-4, nan_ok=True)  # another order of sums, over three steps
    counts = [load_run(tmp_path / name).stats(SITES, ["n"])["n"].tolist() for name in ("one", "two")]
    assert counts[0] == counts[1]
    seen = [load_run(tmp_path / name).exponents("model.layers.1.mlp.down_proj:out", step=3) for name in ("one", "two")]
    assert all(one is not None for one in seen)


def test_without_grad_in_it_trains_the_very_same_bits(tiny_models, tmp_path):
    """The share of a layer is a view of its input: gradients of several readers are then added in another order."""
    weights = []
    for sites in (None, ("*", "!*:grad_in")):
        watched = trainer(lora(tiny_models["llama"]), tmp_path / "out", gradient_accumulation_steps=2)
        if sites:
            watched.add_callback(InstrumentCallback(tmp_path / "run", sites=sites, histogram_every=2, probe_every=2))
        watched.train()
        weights.append([p.detach().clone() for p in watched.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    tensors = {name.rpartition(":")[2] for name in load_run(tmp_path / "run").sites["name"]}
    assert {"in", "out", "grad_out", "lora_B.grad"} <= tensors
    assert "grad_in" not in tensors
    assert all(value > 0 for value in norms(tmp_path / "run", r"layers\.1\.mlp\.down_proj:in$"))


@pytest.mark.parametrize("fuse", [False, True])
def test_a_callback_that_was_given_twice_records_once(tiny_models, tmp_path, fuse):
    callback = InstrumentCallback(tmp_path / "run", fuse=fuse)
    given = trainer(lora(tiny_models["llama"]), tmp_path / "out", eval_strategy="steps", eval_steps=2)
    given.add_callback(callback)
    given.add_callback(callback)
    for number, steps in enumerate(([1, 2, 3], [1, 2, 3])):  # a second training of the same Trainer has its own folder
        given.train()
        folder = tmp_path / ("run-2" if number else "run")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == steps
        assert len([line for line in lines if "eval_loss" in line]) == 2
    assert not (tmp_path / "run-3").exists()


class ByPlace(Trainer):
    """Hands the ids to the model by their place and keeps the labels, as TRL's ORPOTrainer does."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs["labels"][:, 1:].flatten())


def test_what_is_handed_over_by_its_place_is_counted_and_labels_that_nobody_gave_are_not(tiny_models, tmp_path):
    placing = trainer(overflowing(tiny_models["llama"], torch.float16), tmp_path / "out", ByPlace)
    placing.add_callback(InstrumentCallback(tmp_path / "run"))
    placing.train()
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][:1]
    assert (line["tokens"], line["supervised_tokens"]) == (48, None)
    (diagnosis,) = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("incidents/*/diagnosis.json")]
    assert diagnosis["module"].startswith("model.layers.1.mlp")  # found by running the very pass again


class ByVectors(Trainer):
    """Embeds the ids itself."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        vectors = model.get_input_embeddings()(inputs["input_ids"])
        return model(inputs_embeds=vectors).logits.square().mean()


def test_tokens_that_nobody_told_of_are_not_0(tiny_models, tmp_path):
    embedding = trainer(lora(tiny_models["llama"]), tmp_path / "out", ByVectors, max_steps=12)
    embedding.add_callback(InstrumentCallback(tmp_path / "run"))
    embedding.train()
    metrics = load_run(tmp_path / "run").metrics()
    unknown = ["tokens", "supervised_tokens", "tokens_per_second", "max_sequence_length"]
    assert metrics[unknown].isna().to_numpy().all()
    history = read_history(tmp_path / "run")
    assert "tokens/s" not in "\n".join(lines(history, explain(history), "en"))
    assert report_data(history)["tiles"]


class Interrupts(TrainerCallback):
    """The stop button, wherever a training can be."""

    def __init__(self, where: str):
        self.where = where

    def stop(self, where: str) -> None:
        if where == self.where:
            self.where = ""
            raise KeyboardInterrupt

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop("epoch")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop("step")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop("evaluation")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop("end")


def is_bare(model: nn.Module, training: Any) -> bool:
    """Whether nothing is left on a model and its Trainer."""
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__]
    own = {"_run_epoch", "_evaluate", "_finalize_training"} & set(vars(training))
    return not hooks and not own and "backward" not in vars(training.accelerator)


@pytest.mark.parametrize("where", ["epoch", "step", "evaluation", "end"])
def test_the_stop_button_takes_everything_off_and_the_cell_runs_again(tiny_models, tmp_path, where):
    backward, model = Accelerator.backward, lora(tiny_models["llama"])
    training = trainer(model, tmp_path / "out", eval_strategy="steps", eval_steps=2)
    training.add_callback(Interrupts(where))
    training.add_callback(InstrumentCallback(tmp_path / "run", fuse=True))
    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps the traceback, and every frame with it
        training.train()
    assert kept.tb is not None
    assert is_bare(model, training)
    training.train()
    assert is_bare(model, training)
    assert Accelerator.backward is backward
    assert load_run(tmp_path / "run-2").metrics()["step"].tolist() == [1, 2, 3]


def test_two_trainers_alternate_and_each_records_its_own(tiny_models, tmp_path):
    both = [trainer(lora(tiny_models["llama"]), tmp_path / "out", learning_rate=rate) for rate in (1e-2, 1e-3)]
    for index, training in enumerate(both):
        training.add_callback(InstrumentCallback(tmp_path / f"run{index}", fuse=True))
    for _ in range(2):
        for training in both:
            training.train()
    for index, training in enumerate(both):
        for run in (f"run{index}", f"run{index}-2"):
            assert len(load_run(tmp_path / run).metrics()) == 3
        logged = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
        recorded = load_run(tmp_path / f"run{index}-2").metrics()["loss"].tolist()
        assert recorded == pytest.approx(logged, abs=2e-4)
        assert is_bare(training.model, training)


def test_a_callback_that_is_collected_leaves_the_model(tiny_models, tmp_path):
    model = lora(tiny_models["llama"])
    training = trainer(model, tmp_path / "out")
    callback = InstrumentCallback(tmp_path / "run", fuse=True)
    training.add_callback(callback)
    training.state.is_world_process_zero = True
    training.callback_handler.on_train_begin(training.args, training.state, training.control)
    assert any("forward" in module.__dict__ for module in model.modules())
    del training, callback
    gc.collect()
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.modules())


class Copies(TrainerCallback):
    """Averages of weights and reference models are copies; a checkpoint of the whole model is a pickle."""

    def __init__(self) -> None:
        self.copies: list[Any] = []
        self.expected: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, ids = kwargs["model"], torch.arange(4, 16)[None]
        if state.global_step == 2:
            self.copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            with torch.no_grad():
                self.expected = [model(input_ids=ids).logits]


@pytest.mark.parametrize("fuse", [False, True])
def test_a_copy_of_the_model_is_pefts_and_records_nothing(tiny_models, tmp_path, fuse):
    copies = Copies()
    training = trainer(lora(tiny_models["llama"]), tmp_path / "out", max_steps=4)
    training.add_callback(InstrumentCallback(tmp_path / "run", fuse=fuse, probe_every=2))
    training.add_callback(copies)
    training.train()
    for copied in copies.copies:
        with torch.no_grad():
            got = copied(input_ids=torch.arange(4, 16)[None]).logits
        torch.testing.assert_close(got, copies.expected[0], rtol=1e-5, atol=1e-5)
        weight = copied.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight
        with torch.no_grad():
            weight.add_(1.0)  # its own, not the original's
            assert not torch.allclose(copied(input_ids=torch.arange(4, 16)[None]).logits, got)
    assert len(load_run(tmp_path / "run").metrics()) == 4


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
        {"target_modules": ["q_proj", "k_proj"], "use_dora": True},
        {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
    ],
)
def test_adapters_on_more_than_linears_are_trained_and_recorded(tiny_models, tmp_path, settings, fuse):
    base = AutoModelForCausalLM.from_pretrained(tiny_models["llama"], dtype=torch.float32)
    training = trainer(get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", **settings)), tmp_path / "out")
    training.add_callback(InstrumentCallback(tmp_path / "run", fuse=fuse, histogram_every=2))
    training.train()
    run = load_run(tmp_path / "run")
    assert len(run.metrics()) == 3
    assert all(value > 0 for value in norms(tmp_path / "run", r"q_proj.*:(out|grad_out)$"))
    if "embed_tokens" in settings["target_modules"]:
        of_embedding = {name.rpartition(":")[2] for name in run.sites["name"] if "embed_tokens:" in name}
        assert of_embedding == {"out", "grad_out", "lora_A.grad", "lora_B.grad"}
        assert all(value > 0 for value in norms(tmp_path / "run", r"embed_tokens:(out|grad_out|lora_A\.grad)$"))


OTHERS = {
    "AdaLoRA": AdaLoraConfig(init_r=6, target_r=4, total_step=10, target_modules=["q_proj"]),
    "LoHa": LoHaConfig(r=4, target_modules=["q_proj"]),
    "IA3": IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "VeRA": VeraConfig(r=4, target_modules=["q_proj"]),
    "prompt": PromptTuningConfig(num_virtual_tokens=2),
    "all weights": None,
}


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_watching_ends_no_training_of_another_kind(tiny_models, tmp_path, capsys, kind, fuse):
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_models["llama"], dtype=torch.float32)
    if (config := OTHERS[kind]) is not None:
        config.task_type = "CAUSAL_LM"
        model = get_peft_model(model, config)
    training = trainer(model, tmp_path / "out", eval_strategy="steps", eval_steps=3)
    training.add_callback(InstrumentCallback(tmp_path / "run", fuse=fuse))
    training.train()
    run = load_run(tmp_path / "run")
    logged = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert run.metrics()["loss"].tolist() == pytest.approx(logged, abs=2e-4)
    assert run.metrics()["grad_norm"].notna().all()
    assert "recorded" not in capsys.readouterr().out
    assert len(run.sites) > 0
    assert all(value > 0 for value in norms(tmp_path / "run", r"model\.layers\.1\.self_attn\.q_proj:out$"))


class TakesPixels(nn.Module):
    """A model that token ids alone do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.second(self.first(pixel_values).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("fuse", [False, True])
def test_a_model_that_wants_more_than_token_ids_is_recorded(tmp_path, capsys, fuse):
    model = get_peft_model(TakesPixels(), LoraConfig(r=2, target_modules=["first", "second"]))
    data: Any = [{"pixel_values": [0.1 * i] * 6, "labels": i % 2} for i in range(16)]
    how = {"max_steps": 3, "report_to": [], "save_strategy": "no", "use_cpu": True, "remove_unused_columns": False}
    training = Trainer(model, TrainingArguments(str(tmp_path / "out"), **how), train_dataset=data)  # pyright: ignore[reportArgumentType]
    training.add_callback(InstrumentCallback(tmp_path / "run", fuse=fuse))
    training.train()
    assert "four token ids" in capsys.readouterr().out
    assert all(value > 0 for value in norms(tmp_path / "run", r"first:out$"))


@pytest.mark.parametrize("fuse", [False, True])
def test_a_compiled_training_is_recorded_as_one_that_is_not(tiny_models, tmp_path, fuse):
    torch._dynamo.reset()
    for name, how in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "aot_eager"})):
        training = trainer(lora(tiny_models["llama"]), tmp_path / "out", **how)
        training.add_callback(InstrumentCallback(tmp_path / name, fuse=fuse, probe_every=0))
        training.train()
    plain, compiled = norms(tmp_path / "plain", "."), norms(tmp_path / "compiled", ".")
    # traced products are summed in another order, and three steps go on from the result
    assert compiled == pytest.approx(plain, rel=1e-3, nan_ok=True)
    assert sum(value == value for value in compiled) > 100
