"""What is recorded against a plain float64 computation from hooks on PEFT's unfused model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lora_train.instrument import watch
from lora_train.instrument.read.store import COLUMNS
from lora_train.instrument.record.patch import Patched, base_name, lora_modules, patch
from lora_train.instrument.record.recorder import Recorder
from lora_train.instrument.record.sites import UNFUSED_TENSORS, Watching
from lora_train.kernels.statistics.tensor_stats import multi_tensor_stats

from .test_patch import IDS, make, patched_copy


def trained(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_recorder(model: Any, patched: Patched, n_micro: int = 2, **settings: Any) -> Recorder:
    settings = {"n_micro_batches": n_micro, "model": model, **settings}
    return Recorder(
        patched, trained(model), lambda: model(input_ids=IDS[:, :4]), torch.device("cpu"), Watching(**settings)
    )


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten())


def run_step(model: Any, recorder: Recorder, micro_batches: list[torch.Tensor], step: int = 1) -> dict[str, dict]:
    """One step's rows by site name and column."""
    model.zero_grad()
    with recorder.active():
        recorder.begin_step(step)
        for ids in micro_batches:
            recorder.begin_micro_batch()
            loss_of(model, ids).backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained(model)]
        recorder.finish_step(multi_tensor_stats(gradients), gradients)
        ((done, rows, exponents),) = recorder.drain()
    assert done == step
    every = recorder.watching.histogram_every
    assert (exponents is not None) == bool(every and step % every == 0)
    result: dict[str, dict] = {
        site.name: dict(zip(COLUMNS, rows[site.id].tolist(), strict=True)) for site in recorder.sites
    }
    if exponents is not None:
        for site in recorder.sites:
            result[site.name]["exponents"] = exponents[site.id].long()
    return result


def expected_tensors(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """in, out, grad_out and the gradients of every LoRA module of an unfused model, by site name."""
    tensors: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in lora_modules(model).items():

        def hook(_module: Any, args: Any, output: torch.Tensor, name: str = name) -> None:
            tensors[f"{name}:in"], tensors[f"{name}:out"] = args[0].detach(), output.detach()
            output.register_hook(lambda grad: tensors.__setitem__(f"{name}:grad_out", grad))
            if args[0].requires_grad:
                args[0].register_hook(lambda grad: tensors.__setitem__(f"{name}:grad_in", grad))

        handles.append(module.register_forward_hook(hook))
    model.zero_grad()
    loss_of(model, ids).backward()
    for handle in handles:
        handle.remove()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[base_name(name).replace(".default.weight", ".grad").replace(".lora_", ":lora_")] = parameter.grad
    return tensors


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_norms_and_counts_are_those_of_the_tensors(family):
    model = make(family)
    fused, patched = patched_copy(model)
    rows = run_step(fused, make_recorder(fused, patched, n_micro=1), [IDS])
    expected = expected_tensors(model, IDS)
    n_modules = len(lora_modules(model))
    compared = [name for name in expected if name in rows and not name.endswith((":in", ":grad_in"))]
    assert len(compared) == 4 * n_modules
    for name in compared:
        tensor = expected[name].double()
        assert math.sqrt(rows[name]["sumsq"]) == pytest.approx(tensor.norm().item(), rel=2e-5), name
        assert rows[name]["absmax"] == pytest.approx(tensor.abs().max().item(), rel=1e-4), name
        assert (rows[name]["n"], rows[name]["n_nan"], rows[name]["n_inf"]) == (tensor.numel(), 0, 0)
    # what a group shares is named after all of it; the first layer's input needs no gradient
    if family == "llama":
        shared = "model.layers.1.self_attn.q_proj+k_proj+v_proj"
        assert rows[f"{shared}:in"]["n"] == expected["model.layers.1.self_attn.q_proj:in"].numel()
        assert rows[f"{shared}:grad_in"]["sumsq"] > 0
        assert math.isnan(rows["model.layers.0.self_attn.q_proj+k_proj+v_proj:grad_in"]["sumsq"])


def test_micro_batches_are_summed_and_maximised():
    model, patched = patched_copy(make("llama"))
    recorder = make_recorder(model, patched)
    parts = [run_step(model, recorder, [ids]) for ids in (IDS, IDS[:, :9])]
    both = run_step(model, recorder, [IDS, IDS[:, :9]])
    out, grad = "model.layers.0.mlp.down_proj:out", "model.layers.1.self_attn.o_proj:lora_B.grad"
    assert both[out]["sumsq"] == parts[0][out]["sumsq"] + parts[1][out]["sumsq"]
    assert both[out]["n"] == parts[0][out]["n"] + parts[1][out]["n"]
    assert both[out]["absmax"] == max(parts[0][out]["absmax"], parts[1][out]["absmax"])
    # the step's gradient is the accumulated one; micro_sumsq adds the micro-batches' own
    assert both[grad]["micro_sumsq"] == pytest.approx(parts[0][grad]["sumsq"] + parts[1][grad]["sumsq"], rel=1e-9)
    assert both[grad]["sumsq"] != pytest.approx(both[grad]["micro_sumsq"], rel=1e-3)
    assert both[grad]["n"] == parts[0][grad]["n"]


def test_the_first_bad_micro_batch_is_named():
    model, patched = patched_copy(make("gpt_neox"))
    recorder = make_recorder(model, patched, n_micro=3)
    base: Any = model.get_base_model()
    with torch.no_grad():
        base.get_input_embeddings().weight[100, 5] = float("nan")
    clean, bad = torch.arange(12).view(1, 12), torch.full((1, 12), 100)
    rows = run_step(model, recorder, [clean, bad, bad])
    name = "gpt_neox.layers.0.attention.query_key_value"
    assert rows[f"{name}:in"]["n_nan"] == 2 * 12 * 48
    assert rows[f"{name}:in"]["first_bad_micro"] == 1.0
    assert rows[f"{name}:out"]["first_bad_rank"] == 0.0
    healthy = run_step(model, recorder, [clean])
    assert math.isnan(healthy[f"{name}:out"]["first_bad_micro"])


def test_fp16_overflow_is_counted_where_it_happens_and_named_there_only():
    """A weight makes dense_4h_to_h overflow in float16: its inputs are finite, its output is not."""
    model = make("gpt_neox", target_modules=["dense_4h_to_h", "dense_h_to_4h"])
    model.get_base_model().half()
    base: Any = model.get_base_model()
    with torch.no_grad():
        base.gpt_neox.layers[1].mlp.dense_4h_to_h.base_layer.bias[3] = 65504.0
        base.gpt_neox.layers[1].mlp.dense_4h_to_h.lora_B["default"].weight.zero_()
        base.gpt_neox.layers[1].mlp.dense_4h_to_h.base_layer.weight[3] = 60.0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    patched = patch(model, lambda: model(input_ids=IDS[:, :4]))
    rows = run_step(model, make_recorder(model, patched, n_micro=1), [IDS])
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h"
    assert rows[f"{name}:in"]["n_inf"] == rows[f"{name}:in"]["n_nan"] == 0
    assert rows[f"{name}:out"]["n_overflow"] == rows[f"{name}:out"]["n_inf"] > 0
    assert rows["gpt_neox.layers.0.mlp.dense_4h_to_h:out"]["n_overflow"] == 0


def test_unfused_modules_are_recorded_through_hooks():
    model = make("llama", use_dora=True, target_modules=["q_proj", "o_proj"])
    other, patched = patched_copy(model)
    recorder = make_recorder(other, patched, n_micro=1)
    assert [site.tensor for site in recorder.sites][:6] == list(UNFUSED_TENSORS)
    rows = run_step(other, recorder, [IDS])
    expected = expected_tensors(model, IDS)
    # the only reader of o_proj's input is o_proj: what autograd gives for the input is the module's own share
    shared, alone = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.o_proj"
    assert rows[f"{alone}:grad_in"]["sumsq"] ** 0.5 == pytest.approx(
        expected[f"{alone}:grad_in"].double().norm().item(), rel=1e-6
    )
    assert rows[f"{shared}:grad_in"]["sumsq"] ** 0.5 != pytest.approx(
        expected[f"{shared}:grad_in"].double().norm().item(), rel=1e-2
    )
    for tensor in ("in", "out", "grad_out", "lora_A.grad", "lora_B.grad"):
        name = f"model.layers.1.self_attn.q_proj:{tensor}"
        assert math.sqrt(rows[name]["sumsq"]) == pytest.approx(expected[name].double().norm().item(), rel=1e-6)


def test_patterns_choose_sites_and_the_last_match_decides():
    model, patched = patched_copy(make("llama"))
    names = [s.name for s in make_recorder(model, patched, patterns=["*layers.1*", "!*:in", "!*:grad_*"]).sites]
    assert all("layers.1" in name for name in names)
    assert {name.rpartition(":")[2] for name in names} == {"out", "lora_A.grad", "lora_B.grad"}
    everything = make_recorder(model, patched).sites
    without = make_recorder(model, patched, patterns=["!*:in"]).sites
    assert len(without) == len(everything) - sum(site.tensor == "in" for site in everything)
    assert [site.id for site in without] == list(range(len(without)))


def test_watch_records_a_tensor_of_the_users_own():
    model, patched = patched_copy(make("gpt_neox"))
    base: Any = model.get_base_model()
    seen: dict[str, torch.Tensor] = {}

    def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
        seen["out"] = watch("mine", output).detach()

    base.gpt_neox.layers[0].mlp.act.register_forward_hook(hook)
    rows = run_step(model, make_recorder(model, patched, n_micro=1), [IDS])
    assert math.sqrt(rows["mine:out"]["sumsq"]) == pytest.approx(seen["out"].double().norm().item(), rel=1e-6)
    assert rows["mine:grad_out"]["sumsq"] > 0
    assert watch("mine", seen["out"]) is seen["out"]


def test_exponents_are_counted_on_histogram_steps_only():
    model = make("llama")
    fused, patched = patched_copy(model)
    recorder = make_recorder(fused, patched, n_micro=2, histogram_every=3)
    assert "exponents" not in run_step(fused, recorder, [IDS], step=2)["model.layers.0.mlp.down_proj:out"]
    rows = run_step(fused, recorder, [IDS, IDS], step=3)
    expected = expected_tensors(model, IDS)
    for name in ("model.layers.1.mlp.down_proj:out", "model.layers.1.mlp.up_proj:grad_out"):
        # frexp's mantissa is in [0.5, 1), the field's in [1, 2); a zero has the field 0
        counts = torch.where(expected[name] == 0, 0, torch.frexp(expected[name])[1] + 126).flatten()
        assert rows[name]["exponents"].sum() == 2 * expected[name].numel()
        close = (rows[name]["exponents"] - 2 * torch.bincount(counts, minlength=256)).abs().sum()
        assert close <= 0.01 * expected[name].numel()
        assert rows[name]["n_zero"] == 2 * (expected[name] == 0).sum()
    gradient = "model.layers.1.mlp.down_proj:lora_A.grad"
    assert rows[gradient]["exponents"].sum() == expected[gradient].numel()


def test_recording_changes_no_bit():
    model, patched = patched_copy(make("llama", lora_dropout=0.2))
    recorder = make_recorder(model, patched, n_micro=1, histogram_every=1)

    def gradients(record: bool) -> list[torch.Tensor]:
        torch.manual_seed(5)
        if record:
            run_step(model, recorder, [IDS])
        else:
            model.zero_grad()
            loss_of(model, IDS).backward()
        return [p.grad.clone() for p in trained(model) if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_activation_checkpointing_leaves_the_statistics_unchanged():
    model, patched = patched_copy(make("gpt_neox", lora_dropout=0.2))
    recorder = make_recorder(model, patched, n_micro=1)
    torch.manual_seed(2)
    plain = run_step(model, recorder, [IDS])
    base: Any = model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(2)
    recomputed = run_step(model, recorder, [IDS])
    # transformers makes the embeddings' output require a gradient then, so the first layer has a grad_in to record
    first = {f"gpt_neox.layers.0.{name}:grad_in" for name in ("attention.query_key_value", "mlp.dense_h_to_4h")}
    assert {name for name in plain if str(plain[name]) != str(recomputed[name])} == first
    assert all(math.isnan(plain[name]["n"]) and recomputed[name]["n"] > 0 for name in first)


def test_processes_are_summed_and_the_first_bad_rank_named():
    """Two processes simulated by their rows; the real thing runs in tests/trainer/test_cli.py."""
    model, patched = patched_copy(make("gpt_neox"))
    other: dict[str, torch.Tensor] = {}

    def gather(rows: torch.Tensor) -> torch.Tensor:
        second = rows.clone()
        second[0, COLUMNS.index("first_bad_micro")] = 0.0
        other["rows"] = rows.clone()
        return torch.stack([rows, second])

    rows = run_step(model, make_recorder(model, patched, n_micro=1, gather=gather), [IDS])
    alone = run_step(model, make_recorder(model, patched, n_micro=1), [IDS])
    name = "gpt_neox.layers.0.mlp.dense_4h_to_h"
    assert rows[f"{name}:out"]["sumsq"] == 2 * alone[f"{name}:out"]["sumsq"]
    assert rows[f"{name}:out"]["absmax"] == alone[f"{name}:out"]["absmax"]
    assert rows[f"{name}:lora_A.grad"]["sumsq"] == alone[f"{name}:lora_A.grad"]["sumsq"]
    first = rows["gpt_neox.layers.0.attention.query_key_value:in"]
    assert (first["first_bad_micro"], first["first_bad_rank"]) == (0.0, 1.0)


def test_modules_without_lora_are_probed_now_and_then():
    model, patched = patched_copy(make("gpt_neox"))
    recorder = make_recorder(model, patched, probe_every=2)
    base: Any = model.get_base_model()
    seen: list[torch.Tensor] = []
    base.gpt_neox.layers[1].input_layernorm.register_forward_hook(lambda _m, _a, out: seen.append(out.detach()))
    name = "gpt_neox.layers.1.input_layernorm:out"
    first = run_step(model, recorder, [IDS[:, :9], IDS], step=1)
    assert math.isnan(first[name]["absmax"])
    n_hooks = sum(len(module._forward_hooks) for module in model.modules())
    second = run_step(model, recorder, [IDS[:, :9], IDS], step=2)
    # the first micro-batch of the step alone
    assert second[name]["absmax"] == seen[2].abs().max().item()
    assert second[name]["n"] == seen[2].numel()
    assert sum(len(module._forward_hooks) for module in model.modules()) == n_hooks == 1
    probed = {site.module for site in recorder.sites} - set(lora_modules(model))
    assert {
        "gpt_neox.embed_in",
        "gpt_neox.layers.0",
        "gpt_neox.layers.0.mlp.act",
        "gpt_neox.final_layer_norm",
    } <= probed
    assert "lm_head" not in probed
