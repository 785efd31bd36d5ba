"""Merging, in-process on tiny models; the real command line once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lora_train.trainer.cli import main
from lora_train.trainer.verbs.adapter_folder import read_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...conftest import DATA

TOKENS = torch.arange(40)[None]
# Unit roundoff of the merged weights. Base, update and their sum are each rounded once, so a merged weight is off by at
# most u (|W| + |sBA| + |W + sBA|).
ROUNDOFF = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}


def make_run(folder: Path, base: Path, **sections) -> Path:
    """A run folder as training leaves it, with an adapter that has moved."""
    config = {
        "model": {"name_or_path": str(base)},
        "data": {"train": str(DATA), "format": "koalpaca"},
        "training": {"output_dir": str(folder)},
        **sections,
    }
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(str(folder / "adapter"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").touch()
    return folder


@pytest.fixture
def run(tiny_models, tmp_path) -> Path:
    return make_run(tmp_path / "run", tiny_models["llama"])


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """In float32, whatever the weights are stored in."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return (PeftModel.from_pretrained(model, adapter).eval() if adapter else model)(input_ids=TOKENS).logits


def logits_tolerance(model: torch.nn.Module, dtype: str) -> float:
    """How far logits of merged weights may lie from those of base and adapter, as a share of the largest.

    Three roundings of each weight leave the norm of a product off by sqrt(3) u, whatever its length, and n roundings of
    a sum in float32, in whatever order a chip adds, by sqrt(n) 2^-24, once for either model. The errors of one product
    are as independent of another's as roundings are, so that those of L add up as squares do:
    sqrt(L (3 u^2 + 2 n 2^-48)).
    """
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    longest = max(linear.in_features for linear in linears)
    return (len(linears) * (3 * ROUNDOFF[dtype] ** 2 + 2 * longest * ROUNDOFF["float32"] ** 2)) ** 0.5


@pytest.mark.parametrize(("name", "asked"), [("llama", "auto"), ("llama", "float16"), ("gpt_neox", "bfloat16")])
def test_merged_folder_computes_what_base_and_adapter_do(tiny_models, tmp_path, capsys, name, asked):
    run = make_run(tmp_path / "run", tiny_models[name])
    before = everything(run)
    assert main(["merge", str(run), "--dtype", asked]) == 0
    assert f"merged {run / 'merged'}" in capsys.readouterr().out
    after = everything(run)
    assert {path: after[path] for path in before} == before
    assert {path.name for path in run.iterdir()} == {"adapter", "config.yaml", "merged", "metrics.jsonl"}

    dtype = "float32" if asked == "auto" else asked
    merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype="auto")
    assert merged.dtype == getattr(torch, dtype)
    assert not any("lora" in parameter for parameter, _ in merged.named_parameters())
    ours, theirs = logits(run / "merged"), logits(tiny_models[name], run / "adapter")
    atol = logits_tolerance(merged, dtype) * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    assert (logits(tiny_models[name]) - theirs).abs().max() > 5 * atol  # the adapter matters
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (run / "merged", tiny_models[name])]
    assert tokenizers[0]("질문")["input_ids"] == tokenizers[1]("질문")["input_ids"]
    assert (run / "merged" / "generation_config.json").is_file()


def test_a_4_bit_run_is_merged_into_unquantized_16_bit_weights(tiny_models, tmp_path, capsys):
    base = tiny_models["llama"]
    run = make_run(tmp_path / "run", base, quantization={"load_in_4bit": True})
    assert main(["merge", str(run), "-o", str(tmp_path / "new" / "merged")]) == 0
    assert "merged into the unquantized weights in float16" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "merged", dtype="auto")
    assert merged.dtype == torch.float16
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    layer = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{layer}.lora_{matrix}.weight"].double() for matrix in "AB")
    weight = AutoModelForCausalLM.from_pretrained(base).get_parameter(f"{layer}.weight").double()
    update = 2 * b @ a
    off = (merged.get_parameter(f"{layer}.weight").double() - (weight + update)).abs()
    bound = ROUNDOFF["float16"] * (weight.abs() + update.abs() + (weight + update).abs()) * 1.01 + 2**-24
    assert (off <= bound).all()
    assert off.max() > 0


def test_checkpoints_and_adapters_made_elsewhere(tiny_models, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", tiny_models["llama"])
    checkpoint = run / "checkpoint-7"
    (run / "adapter").rename(checkpoint)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps({"step": 7, "config": config}))
    assert read_adapter(run).config == read_adapter(checkpoint).config is not None
    assert main(["merge", str(checkpoint)]) == 0
    assert (run / "checkpoint-7-merged" / "model.safetensors").is_file()  # not in the checkpoint, which is pruned
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, elsewhere)
    (elsewhere / "trainer_state.json").write_text('{"global_step": 7}')  # transformers' Trainer writes one too
    assert read_adapter(elsewhere).config is None
    assert main(["merge", str(elsewhere)]) == 0
    folders = (run / "checkpoint-7-merged", tmp_path / "elsewhere-merged")
    shutil.rmtree(folders[1])
    monkeypatch.chdir(elsewhere)
    assert main(["merge", "."]) == 0
    of_run, of_copy = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert of_run == of_copy


def change_settings(run: Path, **values) -> None:
    file = run / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(run: Path, name: str, change) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors, f"base_model.model.{name}.weight")
    save_file(tensors, file)


def set_nan(tensors, name):
    tensors[name][0, 0] = torch.nan


def set_huge(tensors, name):
    tensors[name][:] = 1e6


def set_wide(tensors, name):
    tensors[name] = torch.zeros(tensors[name].shape[0], 2 * tensors[name].shape[1])


def drop_layer(tensors, name):
    for matrix in "AB":
        del tensors[name.replace("lora_A", f"lora_{matrix}")]


def change_config(run: Path, **sections) -> None:
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | sections))


A, B = "model.layers.0.mlp.up_proj.lora_A", "model.layers.0.mlp.up_proj.lora_B"
BAD = [
    (lambda run: (run / "merged").mkdir(), [], "merged exists already"),
    (lambda run: (run / "merged").write_text(""), [], "merged exists already"),
    (lambda run: None, ["-o", "/dev/null/merged"], "/dev/null/merged cannot be written"),
    (lambda run: shutil.rmtree(run / "adapter"), [], "holds no adapter"),
    (lambda run: (run / "adapter" / "adapter_config.json").unlink(), [], "holds no adapter_config.json"),
    (lambda run: change_settings(run, peft_type="IA3"), [], "peft_type is IA3, not LORA"),
    (lambda run: change_settings(run, r=8), [], "does not fit"),
    (lambda run: change_settings(run, target_modules=["no_such"]), [], "does not fit"),
    (lambda run: change_weights(run, B, set_nan), [], "is dead: 1 of its values are not finite"),
    (lambda run: change_weights(run, B, set_huge), ["--dtype", "float16"], "not finite in float16"),
    (lambda run: change_weights(run, A, set_wide), [], "does not fit"),
    (lambda run: change_weights(run, A, drop_layer), [], "does not fit"),
    (lambda run: change_config(run, model={"name_or_path": "/nowhere/model"}), [], "the base model of"),
    (lambda run: change_config(run, model={"name_or_path": "owner/model"}), [], "owner/model cannot be loaded"),
    (lambda run: change_config(run, model={"name": "owner/model"}), [], "model.name_or_path: Field required"),
    (lambda run: (run / "config.yaml").write_bytes(b"\xff"), [], "config.yaml cannot be read"),
    (lambda run: (run / "config.yaml").write_text("a: ["), [], "config.yaml cannot be read"),
    (lambda run: None, ["--dtype", "int8"], "invalid choice: 'int8'"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "arguments", "error"), BAD)
def test_what_cannot_be_merged_is_an_error_and_leaves_nothing(run, capsys, make, arguments, error):
    make(run)
    before = everything(run)
    assert main(["merge", str(run), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert error in err
    assert "\nhint: " in err
    assert everything(run) == before


def test_a_base_that_is_published_quantized_is_refused(run, tiny_models, tmp_path, capsys):
    base = tmp_path / "quantized"
    shutil.copytree(tiny_models["llama"], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    )
    change_config(run, model={"name_or_path": str(base)})
    assert main(["merge", str(run)]) == 2
    assert "is published quantized" in capsys.readouterr().err


def test_code_that_comes_with_a_model_does_not_run_because_a_run_folder_says_so(run, tiny_models):
    model = {"name_or_path": str(tiny_models["llama"]), "trust_remote_code": True}
    change_config(run, model=model)
    from lora_train.trainer.verbs.load_adapter import base_config

    assert base_config(read_adapter(run)).model.trust_remote_code is False
    assert base_config(read_adapter(run, trust_remote_code=True)).model.trust_remote_code is True


def test_the_real_command_line(cli, run):
    result = cli("merge", run)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    before = everything(run)
    again = cli("merge", run)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith(f"error: {run / 'merged'} exists already")
    assert everything(run) == before
