"""Exported files, read by gguf's own reader and put together by other code than wrote them: PEFT's logits come out."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from lora_train.trainer.cli import main
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.llama_cpp.families import FAMILIES, make_adapter, make_base

from ..verbs.test_merge import make_run

TOKENS = torch.arange(24)[None] + 3
# Names in a GGUF file -> those of transformers, written down by hand.
LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
GEMMA_LAYER = {
    **LAYER, "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
NEOX_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
NEOX_OUTSIDE = {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "lm_head"}


@pytest.fixture(scope="module")
def bases(tiny_models, tmp_path_factory) -> dict[str, Path]:
    """A folder with a tiny model of each family whose every weight is drawn, norms and biases included."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    folders = {}
    for name in FAMILIES:
        folder = tmp_path_factory.mktemp("bases") / name.replace(" ", "_")
        folders[name] = make_base(name, folder, tokenizer)
    return folders


def run_of(folder: Path, base: Path) -> Path:
    """Gemma 2 is trained with eager attention alone."""
    attention = "eager" if base.name == "gemma2" else "sdpa"
    return make_run(folder, base, model={"name_or_path": str(base), "attn_implementation": attention})


def name_there(name: str, arch: str) -> str:
    """What transformers calls a tensor of the file."""
    is_neox = arch == "gptneox"
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{(NEOX_OUTSIDE if is_neox else OUTSIDE)[stem]}.{kind}"
    _, number, part = stem.split(".")
    names = NEOX_LAYER if is_neox else GEMMA_LAYER if arch in ("gemma2", "gemma3") else LAYER
    return f"{'gpt_neox' if is_neox else 'model'}.layers.{number}.{names[part]}.{kind}"


def unpermuted(values: torch.Tensor, name: str, arch: str, config) -> torch.Tensor:
    """Rows in transformers' order, value by value: row 2 i + half of a head there is row half d/2 + i here."""
    heads = config.num_attention_heads
    if (arch == "llama" and name.startswith("blk.") and ".attn_q." in name) or (".attn_k." in name and arch == "llama"):
        n = heads if ".attn_q." in name else config.num_key_value_heads
        per_head = values.reshape(n, -1, *values.shape[1:])
        return torch.cat([per_head[:, 0::2], per_head[:, 1::2]], dim=1).reshape(values.shape)
    if ".attn_qkv." in name:
        q, k, v = values.chunk(3)
        parts = [part.reshape(heads, -1, *part.shape[1:]) for part in (q, k, v)]
        return torch.stack(parts, dim=1).reshape(values.shape)
    return values


def read(path: Path) -> tuple[gguf.GGUFReader, str, dict[str, torch.Tensor]]:
    """The file, its architecture, and its tensors in float32."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    tensors = {
        tensor.name: torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        for tensor in reader.tensors
    }
    return reader, arch, tensors


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def trained(base: Path, run: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter"))


def with_adapter_file(base: Path, path: Path) -> torch.Tensor:
    """The base model with W + alpha / r B A in each weight that the file names."""
    reader, arch, tensors = read(path)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    alpha = reader.fields["adapter.lora.alpha"].contents()
    model = AutoModelForCausalLM.from_pretrained(base)
    names = {name.rpartition(".")[0] for name in tensors}
    assert len(tensors) == 2 * len(names) > 0
    for name in names:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        update = unpermuted(b @ a, name, arch, model.config) * (alpha / len(a))
        model.get_parameter(name_there(name, arch)).data += update
    return logits(model)


def of_model_file(base: Path, path: Path) -> torch.Tensor:
    """An empty model of the base's config with the file's tensors."""
    _, arch, tensors = read(path)
    model = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(base).config)
    state = {}
    for name, values in tensors.items():
        if name == "rope_freqs.weight":
            continue
        less = 1.0 if arch.startswith("gemma") and name.endswith("_norm.weight") else 0.0
        state[name_there(name, arch)] = unpermuted(values, name, arch, model.config) - less
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if "lm_head.weight" not in model.state_dict():  # GPT-NeoX before transformers 5.20
        state["embed_out.weight"] = state.pop("lm_head.weight")
    model.load_state_dict(state)
    return logits(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_file_computes_what_peft_does(bases, tmp_path, family):
    run = run_of(tmp_path / "run", bases[family])
    assert main(["export", str(run), "--to", "gguf-adapter"]) == 0
    expected = trained(bases[family], run)
    got = with_adapter_file(bases[family], run / "lora.gguf")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    assert (logits(AutoModelForCausalLM.from_pretrained(bases[family])) - expected).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_file_computes_what_peft_does(bases, tmp_path, family):
    run = run_of(tmp_path / "run", bases[family])
    path = tmp_path / "new" / "model.gguf"
    assert main(["export", str(run), "--to", "merged-gguf", "--dtype", "float32", "-o", str(path)]) == 0
    expected = trained(bases[family], run)
    torch.testing.assert_close(of_model_file(bases[family], path), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_transformers_reads_the_merged_file_too(bases, tmp_path, family):
    """Its own reader of GGUF, which builds the config from the file as well."""
    run = run_of(tmp_path / "run", bases[family])
    assert main(["export", str(run), "--to", "merged-gguf", "--dtype", "float32"]) == 0
    model = AutoModelForCausalLM.from_pretrained(run, gguf_file="merged.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(model), trained(bases[family], run), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "F16"), ("bfloat16", "BF16"), ("q8_0", "Q8_0")])
def test_matrices_are_stored_as_asked_and_vectors_in_float32(bases, tmp_path, dtype, kind):
    run = run_of(tmp_path / "run", bases["qwen2"])
    assert main(["export", str(run), "--to", "merged-gguf", "--dtype", dtype]) == 0
    reader, _, tensors = read(run / "merged.gguf")
    kinds = {tensor.name: (tensor.tensor_type.name, len(tensor.shape)) for tensor in reader.tensors}
    assert {found for found, n in kinds.values() if n > 1} == {kind}
    assert {found for found, n in kinds.values() if n == 1} == {"F32"}
    weight = tensors["blk.0.attn_q.weight"]
    assert main(["export", str(run), "--to", "merged-gguf", "--dtype", "float32", "-o", str(tmp_path / "f.gguf")]) == 0
    exact = read(tmp_path / "f.gguf")[2]["blk.0.attn_q.weight"]
    # Q8_0: half of one of 127 steps up to the largest of 32 values, and its scale in 16 bits
    step = {"float16": 2**-11, "bfloat16": 2**-8, "q8_0": 0.5 / 127 + 2**-11}[dtype]
    assert (weight - exact).abs().max() <= step * exact.abs().max()
    assert not torch.equal(weight, exact)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"down_proj": 2}},
        {"lora_alpha": 0.5, "target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_every_factor_that_peft_knows_reaches_the_file(bases, tmp_path, settings):
    folder = make_adapter(bases["llama"], tmp_path / "adapter", **settings)
    assert main(["export", str(folder), "--to", "gguf-adapter"]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases["llama"]), folder)
    got = with_adapter_file(bases["llama"], tmp_path / "adapter-lora.gguf")
    torch.testing.assert_close(got, logits(model), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding"),
        ({"trainable_token_indices": [1, 2]}, "trainable_tokens"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_what_is_more_than_products_is_merged_instead(bases, tmp_path, capsys, settings, what):
    """The adapter file is refused with the key, and the merged file holds it."""
    folder = make_adapter(bases["qwen2"], tmp_path / "adapter", **settings)
    assert main(["export", str(folder), "--to", "gguf-adapter"]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert "hint: merge it first: --to merged-gguf" in error
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    path = tmp_path / "merged.gguf"
    assert main(["export", str(folder), "--to", "merged-gguf", "--dtype", "float32", "-o", str(path)]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases["qwen2"]), folder)
    torch.testing.assert_close(of_model_file(bases["qwen2"], path), logits(model), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda name: None if "layers.1.self_attn.q_proj" in name else name, "is missing in the file"),
        (lambda name: name.replace("layers.1.", "layers.9."), "has no place there"),
    ],
)
def test_an_adapter_file_without_some_of_its_layers_is_refused(bases, tmp_path, capsys, change, what):
    """Each form says so: none writes a model that lacks what was trained."""
    folder = make_adapter(bases["llama"], tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    file = folder / "adapter_model.safetensors"
    save_file({new: tensor for name, tensor in load_file(file).items() if (new := change(name)) is not None}, file)
    for form in ("gguf-adapter", "merged-gguf", "ollama", "safetensors"):
        assert main(["export", str(folder), "--to", form]) == 2
        assert what in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_lora_on_a_tied_output_layer_is_merged_into_a_table_of_its_own(bases, tmp_path, capsys):
    base = bases["llama tied, wide heads"]
    folder = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    assert main(["export", str(folder), "--to", "gguf-adapter"]) == 2
    assert "lm_head (tied)" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "merged-gguf", "-o", str(tmp_path / "merged.gguf")]) == 0
    assert {"output.weight", "token_embd.weight"} <= read(tmp_path / "merged.gguf")[2].keys()


def test_other_families_are_refused_by_name(tmp_path, tiny_models, capsys):
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_models["llama"]).save_pretrained(base)
    folder = make_adapter(base, tmp_path / "adapter", target_modules=["c_attn"])
    for form in ("gguf-adapter", "merged-gguf", "ollama"):
        assert main(["export", str(folder), "--to", form]) == 2
        assert f"error: {base} is a gpt2 model, whose GGUF files are not tested here" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "safetensors"]) == 0
    assert (tmp_path / "adapter-merged" / "model.safetensors").is_file()


def test_what_is_there_is_not_written_over_and_nothing_is_left_behind(bases, tmp_path, capsys):
    run = run_of(tmp_path / "run", bases["llama"])
    (run / "lora.gguf").touch()
    assert main(["export", str(run), "--to", "gguf-adapter"]) == 2
    assert "lora.gguf exists already" in capsys.readouterr().err
    before = sorted(path.name for path in run.iterdir())
    (tmp_path / "file").touch()
    assert main(["export", str(run), "--to", "gguf-adapter", "-o", str(tmp_path / "file" / "x.gguf")]) == 2
    for arguments in (["merged-gguf", "--from", "x"], ["safetensors", "--dtype", "q8_0"]):
        assert main(["export", str(run), "--to", *arguments]) == 2
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_vocabulary_of_the_file_is_the_tokenizers(bases, tmp_path):
    """Tokens and merges of the file make a tokenizer that gives the same numbers; special tokens are named."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    run = run_of(tmp_path / "run", bases["llama"])
    assert main(["export", str(run), "--to", "merged-gguf"]) == 0
    fields = gguf.GGUFReader(run / "merged.gguf").fields
    told = {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.ggml.")}
    assert (told["tokenizer.ggml.model"], told["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens = told["tokenizer.ggml.tokens"]
    assert tokens[told["tokenizer.ggml.eos_token_id"]] == "<|endoftext|>"
    assert told["tokenizer.ggml.token_type"][told["tokenizer.ggml.eos_token_id"]] == 3
    assert told["tokenizer.ggml.add_bos_token"] is False
    merges = [tuple(merge.split(" ")) for merge in told["tokenizer.ggml.merges"]]
    again = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    again.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    again.decoder = decoders.ByteLevel()
    text = "### 질문: 2 더하기 33은?\n\n### 답변: it's 35."
    assert again.encode(text).ids == AutoTokenizer.from_pretrained(bases["llama"])(text)["input_ids"]


def test_a_run_of_this_trainer_is_exported(cli, bases, tmp_path):
    """The real command, from training to a file."""
    from ..test_cli import write_config

    config = write_config(tmp_path, bases["qwen3"], max_steps=2)
    assert cli("--config", config).returncode == 0
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert settings["lora_alpha"] == 8
    result = cli("export", tmp_path / "run", "--to", "gguf-adapter")
    assert result.returncode == 0, result.stderr
    assert f"llama-cli -m BASE.gguf --lora {tmp_path / 'run' / 'lora.gguf'}" in result.stdout
    got = with_adapter_file(bases["qwen3"], tmp_path / "run" / "lora.gguf")
    torch.testing.assert_close(got, trained(bases["qwen3"], tmp_path / "run"), rtol=0, atol=1e-3)
