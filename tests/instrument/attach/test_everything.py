"""The callback on whatever people train: all weights, a part of them, adapters of every kind, a model of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lora_train.instrument import Instrument, InstrumentCallback, load_run
from lora_train.instrument.judge.explain import explain, lines, read_history
from lora_train.instrument.show.compare import compare_runs, comparison_lines
from lora_train.instrument.show.report import write_report
from torch import nn
from transformers import AutoModelForCausalLM, Trainer

from .test_peers import norms, trainer

CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], **CAUSAL}
ADAPTERS: dict[str, Any] = {
    "LoHa": lambda: peft.LoHaConfig(r=4, **QV),
    "LoKr": lambda: peft.LoKrConfig(r=4, **QV),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL),
    "VeRA": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], **CAUSAL),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=6, target_r=4, total_step=10, **QV),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, **QV),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **QV),
    "HRA": lambda: peft.HRAConfig(r=4, **QV),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=10, **QV),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], **CAUSAL),
    "DoRA": lambda: peft.LoraConfig(r=4, use_dora=True, **QV),
    "LoRA with its head": lambda: peft.LoraConfig(r=4, modules_to_save=["lm_head"], **QV),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, **CAUSAL),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, **CAUSAL),
    "P-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=16, **CAUSAL),
}


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


class Keeps(Trainer):
    """The norm of every gradient of a step, in float64, as autograd left it before anything clips."""

    seen: list[dict[str, float]]

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        self.__dict__.setdefault("seen", []).append({n: float(g.double().norm()) for n, g in grads.items()})
        return loss


def named_as_trained(site: str, names: list[str]) -> str:
    """The parameter of a gradient's site."""
    module, _, tensor = site.rpartition(":")
    parts = tensor.removesuffix(".grad").split(".")
    (found,) = [n for n in names if module in n and all(p in n.replace("lora_embedding_", "lora_") for p in parts)]
    return found


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_adapter_is_recorded_and_read(tiny_models, tmp_path, capsys, kind, fuse):
    """Every trained parameter has a site with the norm of its gradient; explain, report and compare read the run."""
    for name in ("run", "other"):
        training = trainer(peft.get_peft_model(plain(tiny_models["llama"]), ADAPTERS[kind]()), tmp_path / "out", Keeps)
        training.add_callback(InstrumentCallback(tmp_path / name, fuse=fuse, probe_every=2, histogram_every=2))
        training.train()
    run = load_run(tmp_path / "run")
    trained = [name for name, p in training.model.named_parameters() if p.requires_grad]
    recorded = run.stats(r"\.grad$", ["norm", "n"])
    assert len(recorded) == 3 * len(trained)
    sizes = dict(training.model.named_parameters())
    for step, site, norm, n in recorded[["step", "site", "norm", "n"]].itertuples(index=False):
        parameter = named_as_trained(site, trained)
        # squares of float32 summed in blocks
        assert norm == pytest.approx(training.seen[step - 1][parameter], rel=1e-6, abs=1e-12)
        assert n == sizes[parameter].numel()
    assert "cannot be read" not in capsys.readouterr().out
    history = read_history(tmp_path / "run")
    assert lines(history, explain(history), "en")
    assert write_report(tmp_path / "run").stat().st_size > 0
    both = [read_history(tmp_path / name) for name in ("run", "other")]
    assert comparison_lines(compare_runs(both), "en")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_fine_tuning_has_the_norms_of_plain_autograd(tiny_models, tmp_path, dtype):
    """Of all weights: their gradients, what comes out of every linear, and the gradient that comes back there."""
    outputs: dict[str, list[float]] = {"out": [], "grad_out": []}
    model = plain(tiny_models["llama"], dtype)

    def keep(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            outputs["out"].append(float(output.detach().double().norm()))
            output.register_hook(lambda grad: outputs["grad_out"].append(float(grad.double().norm())))

    watched = "model.layers.1.mlp.down_proj"
    training = trainer(model, tmp_path / "out", Keeps, learning_rate=1e-4, bf16=False)
    training.add_callback(InstrumentCallback(tmp_path / "run", stop=False))
    model.get_submodule(watched).register_forward_hook(keep)
    training.train()
    run = load_run(tmp_path / "run")
    for tensor, expected in outputs.items():
        assert norms(tmp_path / "run", rf"^{watched}:{tensor}$") == pytest.approx(expected, rel=1e-6)
    for step in (1, 2, 3):
        recorded = run.stats(r"\.grad$", ["norm"], step).set_index("site")["norm"]
        expected = {name.replace(".weight", ":weight.grad"): norm for name, norm in training.seen[step - 1].items()}
        assert dict(recorded) == pytest.approx(expected, rel=1e-6)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    sites = set(run.sites["name"])
    assert sites >= {f"{name}:{tensor}" for name in linears for tensor in ("out", "grad_out")}
    width = model.get_submodule(watched).out_features
    assert run.stats(rf"^{watched}:out$", ["n"])["n"].tolist() == [4 * 12 * width] * 3
    total = run.metrics()["grad_norm"].tolist()
    assert total == pytest.approx([math.sqrt(sum(v * v for v in one.values())) for one in training.seen], rel=1e-6)


def test_a_frozen_half_records_gradients_where_they_come(tiny_models, tmp_path):
    model = plain(tiny_models["llama"])
    for part in (model.model.embed_tokens, model.model.layers[0]):
        part.requires_grad_(False)
    training = trainer(model, tmp_path / "out", Keeps)
    training.add_callback(InstrumentCallback(tmp_path / "run", probe_every=0))
    training.train()
    run = load_run(tmp_path / "run")
    names = set(run.sites["name"])
    assert "model.layers.0.mlp.down_proj:out" in names
    assert "model.layers.0.mlp.down_proj:grad_out" not in names  # no gradient comes that far
    assert "model.layers.0.mlp.down_proj:weight.grad" not in names
    assert {f"model.layers.1.mlp.down_proj:{t}" for t in ("out", "grad_out", "weight.grad")} <= names
    assert run.stats(columns=["norm"])["norm"].notna().all()


def test_advice_for_all_weights_names_no_adapter(tiny_models, tmp_path):
    """A part that a task does not use is no fault of full fine-tuning, and target_modules is no key of it."""
    model = plain(tiny_models["llama"])
    model.model.add_module("pooler", nn.Linear(4, 4))
    model.model.layers.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    training = trainer(model, tmp_path / "out", max_steps=4)
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    history = read_history(tmp_path / "run")
    assert history.env["trains"] == ["weights"]
    found = {finding.key: finding for finding in explain(history)}
    assert (found["explain.layers_unused"].verdict, found["explain.layers_unused"].values["n"]) == ("note", 1)
    assert "explain.layers_dead" not in found
    assert not any("target_modules" in line for line in lines(history, list(found.values()), "en"))


def test_patterns_choose_the_sites_and_nothing_else_is_hooked(tiny_models, tmp_path):
    model = plain(tiny_models["llama"])
    with Instrument(model, tmp_path / "run", sites=["*:grad_out", "!*lm_head*"], probe_every=0) as instrument:
        hooked = {name for name, module in model.named_modules() if module._forward_hooks}
        assert {site.tensor for site in instrument.recorder.sites} == {"grad_out"}
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert hooked == linears - {"lm_head"}
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_are_read_whole_before_they_are_clipped(tiny_models, tmp_path):
    """Two micro-batches a step, the last of an epoch alone; the Trainer clips to almost nothing."""
    training = trainer(
        plain(tiny_models["llama"]), tmp_path / "out", Keeps,
        gradient_accumulation_steps=2, max_grad_norm=1e-3, max_steps=-1, num_train_epochs=1,
        per_device_train_batch_size=5,
    )  # fmt: skip
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    n = len(training.seen)
    whole = [at for at in range(n) if at % 2 or at == n - 1]
    recorded = load_run(tmp_path / "run").metrics()["grad_norm"].tolist()
    expected = [math.sqrt(sum(value * value for value in training.seen[at].values())) for at in whole]
    assert recorded == pytest.approx(expected, rel=1e-6)


def test_a_weight_that_dies_in_full_fine_tuning_is_named_before_it_is_applied(tiny_models, tmp_path, capsys):
    model = plain(tiny_models["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    training = trainer(model, tmp_path / "out")
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    assert training.state.global_step == 1
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, before)
    (diagnosis,) = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("incidents/*/diagnosis.json")]
    assert (diagnosis["kind"], diagnosis["module"]) == ("dead_adapter", "model.layers.1.mlp.up_proj")
    assert "COLLAPSE at step 1" in capsys.readouterr().out
    assert any(finding.verdict == "wrong" for finding in explain(read_history(tmp_path / "run")))


def test_an_overflow_in_full_fine_tuning_is_named(tiny_models, tmp_path):
    model = plain(tiny_models["llama"], torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
        model.model.layers[1].mlp.up_proj.weight.fill_(30.0)
    training = trainer(model, tmp_path / "out")
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    (diagnosis,) = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("incidents/*/diagnosis.json")]
    assert diagnosis["kind"] == "forward_overflow"
    assert diagnosis["module"].startswith("model.layers.1.mlp")


class Odd(nn.Module):
    """Of kinds that language models do not have: a convolution, torch's attention, a double, a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8, sparse=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide = nn.Linear(8, 2).double()
        self.unused = nn.Linear(3, 3)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> dict[str, Any]:
        x = self.conv(self.embed(input_ids).mT).mT
        logits = self.wide(self.attention(x, x, x)[0].mean(1).double())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels[:, 0] % 2)
        return {"loss": loss, "logits": logits}


def test_layers_of_other_kinds_are_recorded_as_far_as_they_can_be(tmp_path):
    model = Odd()
    data: Any = {"input_ids": torch.arange(24).view(4, 6), "labels": torch.arange(24).view(4, 6)}
    with Instrument(model, tmp_path / "run", probe_every=1) as instrument, instrument.step() as step:
        step.begin_micro_batch()
        loss = model(**data)["loss"]
        step.micro_batch(loss, data)
        loss.backward()
    run = load_run(tmp_path / "run")
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name, grad in grads.items():
        module, _, parameter = name.rpartition(".")
        site = run.stats(rf"^{module}:{parameter}\.grad$", ["norm"])["norm"].tolist()
        dense = torch.zeros(1) if grad is None else grad.to_dense() if grad.is_sparse else grad
        assert site == pytest.approx([float(dense.double().norm())], rel=1e-6), name
    assert norms(tmp_path / "run", "^wide:grad_out$")[0] > 0
    assert "attention.out_proj:out" not in set(run.sites["name"])  # torch reads its weight and never calls it


def test_an_error_of_the_recording_ends_the_recording_alone(tiny_models, tmp_path, capsys, monkeypatch):
    training = trainer(plain(tiny_models["llama"]), tmp_path / "out")
    callback = InstrumentCallback(tmp_path / "run")
    monkeypatch.setattr(Instrument, "end_step", lambda *_: 1 / 0)
    training.add_callback(callback)
    training.train()
    assert training.state.global_step == 3
    assert capsys.readouterr().out.count("from here on nothing is recorded") == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in training.model.modules())


def test_a_tensor_that_cannot_be_read_is_left_out_and_said_once(tiny_models, tmp_path, capsys, monkeypatch):
    from lora_train.instrument.record.hooks import passes

    def refuses(*_: Any, **__: Any) -> None:
        raise NotImplementedError("for the test")

    training = trainer(plain(tiny_models["llama"]), tmp_path / "out")
    monkeypatch.setattr(passes, "tensor_stats", refuses)
    training.add_callback(InstrumentCallback(tmp_path / "run"))
    training.train()
    assert training.state.global_step == 3
    assert capsys.readouterr().out.count("cannot be read") == 1
    run = load_run(tmp_path / "run")
    assert run.stats(r":out$", ["norm"])["norm"].isna().all()
    assert run.stats(r"\.grad$", ["norm"])["norm"].gt(0).any()
