"""What a run does on either device: every precision and storage trains, resumes, is read, merged and talked to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from lora_train.trainer.cli import main
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.console import Console
from lora_train.trainer.data.examples import Dataset
from lora_train.trainer.dry_run.fake_model import make_fake
from lora_train.trainer.dry_run.memory import predict, run_step, shape_of
from lora_train.trainer.loop.components import build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.loop.train import forward_backward, train_step
from lora_train.trainer.model.load import trainable
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from ..dry_run.test_memory import config_of, examples
from ..test_cli import steps_of, write_config
from .test_train import make_components, make_config

NF4 = {"quantization.load_in_4bit": True, "quantization.bnb_4bit_use_double_quant": True}

# name -> training settings, other settings, how far the first loss may be from float32's: NF4 weights are off by a
# tenth, of which the small logits of a random model show little; fp16 and bf16 round each of some ten products
PRECISIONS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "fp32": ({}, {}, 1e-6),
    "fp16": ({"fp16": True}, {}, 1e-2),
    "bf16": ({"bf16": True}, {}, 2e-2),
    "nf4 fp16": ({"fp16": True}, NF4, 5e-2),
    "nf4 bf16 checkpointing": ({"bf16": True, "gradient_checkpointing": True}, NF4, 5e-2),
    "nf4 fp16 paged": ({"fp16": True, "optim": "paged_adamw_8bit"}, NF4, 5e-2),
}


@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_learns(tiny_models, device, arch, name):
    training, settings, near = PRECISIONS[name]
    components = make_components(with_settings(make_config(tiny_models[arch], **training), settings))
    assert components.model.device.type == components.optimizer.device.type == device
    layers: list[Any] = [module for group in components.patched.groups for module in group.modules]
    assert {layer.get_base_layer().weight.device.type for layer in layers} == {device}
    assert components.patched.unfused == []
    losses = [float(train_step(components, components.plan.rows(step))[0]) for step in range(1, 9)]
    exact = make_components(make_config(tiny_models[arch], per_device_train_batch_size=components.plan.units_per_step))
    assert losses[0] == pytest.approx(float(forward_backward(exact, exact.plan.rows(1))[0]), rel=near)
    assert losses[-1] < losses[0]
    for parameter in trainable(components.model).values():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in tensors.values()]).norm())


def test_a_run_is_resumed_read_merged_and_talked_to(tiny_models, tmp_path, device, capsys):
    training = {"max_steps": 4, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "fp16": True}
    path = write_config(tmp_path, tiny_models["llama"], **training)
    config, sections = str(path), yaml.safe_load(path.read_text())
    sections["quantization"] = {"load_in_4bit": True}
    sections["data"]["eval_fraction"] = 0.1
    path.write_text(yaml.safe_dump(sections))
    run = tmp_path / "run"
    assert main(["--config", config]) == 0
    assert f", on {device}" in capsys.readouterr().out
    whole = load_file(run / "adapter" / "adapter_model.safetensors")
    assert main(["--config", config, "--resume", str(run / "checkpoint-2")]) == 0
    assert [(row["step"], row["start"]) for row in steps_of(run)][-2:] == [(3, 1), (4, 1)]
    resumed = load_file(run / "adapter" / "adapter_model.safetensors")
    # a GPU's attention adds up its gradients in any order: they differ by 2^-11 in fp16, and Adam takes their sign
    limit = 1e-2 * norm(whole) if device == "cuda" else 0.0
    assert norm({name: resumed[name] - whole[name] for name in whole}) <= limit
    for words in (
        ["replay", str(run), "--step", "3"],
        ["inspect", str(run)],
        ["explain", str(run)],
        ["merge", str(run)],
        ["chat", str(run), "--prompt", "hello", "--max-new-tokens", "2"],
        ["--config", config, "--dry-run"],
    ):
        assert main(words) == 0, words


@pytest.mark.gpu
@pytest.mark.parametrize("sections", [{}, {"training": {"fp16": True}}, {"training": {"bf16": True}}], ids=str)
def test_predicted_memory_is_what_the_gpu_measures(tiny_models, tmp_path, sections):
    """The model is so large that rounded sizes of blocks do not matter; cuBLAS has its own memory before."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=8192, **sizes)).save_pretrained(tmp_path)
    config = config_of(
        tmp_path, **{**sections, "training": {"per_device_train_batch_size": 8, **sections.get("training", {})}}
    )
    rows = examples(8)
    components = build(config, Engine(), Dataset("rows", rows), None, 0, Console(silent=True))
    components.model.train()
    forward_backward(components, components.plan.rows(1))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward_backward(components, components.plan.rows(1))
    measured = torch.cuda.max_memory_allocated() - before
    fake = make_fake(config, components.engine.device)
    assert run_step(fake, shape_of(rows)).peak == pytest.approx(measured, rel=0.15)
    assert predict(fake, shape_of(rows)).total > measured
