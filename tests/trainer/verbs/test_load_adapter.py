"""Adapters of every kind that peft writes: merged into weights that compute what base and adapter do, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.trainer import patterns
from lora_train.trainer.cli import main
from lora_train.trainer.verbs import load_adapter
from lora_train.trainer.verbs.adapter_folder import read_adapter
from lora_train.trainer.verbs.inspect_adapter import read_report
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
)

from .test_merge import TOKENS, change_settings, change_weights, drop_layer, logits_tolerance

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "biased": LlamaConfig(**SIZES, attention_bias=True),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "gpt2": GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
}


@pytest.fixture(scope="module")
def bases(tiny_models, tmp_path_factory) -> dict[str, Path]:
    """Models whose every weight is random: initial biases are 0, and so would be what is lost of them."""
    folders = {}
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        folders[name] = tmp_path_factory.mktemp("bases") / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def lora(**settings) -> LoraConfig:
    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    )


def train(
    base: Path,
    config: LoraConfig,
    folder: Path,
    kind: Any = AutoModelForCausalLM,
    n_rows: int | None = None,
    **settings,
) -> torch.Tensor:
    """Saves an adapter whose every trained weight has moved; the logits of base and adapter, float32."""
    torch.manual_seed(1)
    model = kind.from_pretrained(base, dtype=torch.float32, **settings)
    if n_rows is not None:
        model.resize_token_embeddings(n_rows)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "bias in the layers": ("biased", {"lora_bias": True}),
    "all biases": ("biased", {"bias": "all"}),
    "dora": ("llama", {"use_dora": True}),
    "rslora": ("llama", {"use_rslora": True}),
    "patterns": ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1.*v_proj": 3}}),
    "regex": ("llama", {"target_modules": r".*\.(q|v)_proj", "exclude_modules": r".*\.0\..*"}),
    "some layers": ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "head in full": ("llama", {"modules_to_save": ["lm_head", "norm"]}),
    "head in full, tied": ("tied", {"modules_to_save": ["lm_head"]}),
    "embedding in full, tied": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "both in full, tied": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied on purpose": ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding, tied": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "head, tied": ("tied", {"target_modules": ["q_proj", "lm_head"]}),
    "tokens": ("llama", {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4]}}),
    "tokens, tied": ("tied", {"trainable_token_indices": [3, 5]}),
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "olora": ("llama", {"init_lora_weights": "olora"}),
    "eva": ("llama", {"init_lora_weights": "eva"}),
    "no task": ("llama", {"task_type": None}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "experts": ("mixtral", {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
}


def tolerance(folder: Path, wanted: torch.Tensor) -> float:
    """See logits_tolerance; PiSSA and OLoRA take as many roundings again, of the base's new weights."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for parameters in model.parameters():
        assert torch.isfinite(parameters).all()
    return 2 * logits_tolerance(model, "float32") * wanted.abs().max().item()


@pytest.mark.parametrize("kind", EXACT)
def test_merged_weights_compute_what_base_and_adapter_do(bases, tmp_path, kind):
    name, settings = EXACT[kind]
    wanted = train(bases[name], lora(**settings), tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(bases[name])
    with torch.no_grad():
        ours, before = merged(input_ids=TOKENS).logits, base(input_ids=TOKENS).logits
    atol = tolerance(tmp_path / "merged", wanted)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=atol)
    assert (before - wanted).abs().max() > 5 * atol  # the adapter matters
    # who reads a folder that ties takes the table for the head
    table, head = (layer.state_dict()["weight"] for layer in (merged.get_input_embeddings(), merged.lm_head))
    assert AutoConfig.from_pretrained(tmp_path / "merged").tie_word_embeddings == torch.equal(table, head)


RESIZED: dict[str, dict[str, Any]] = {
    "linears": {},
    "tables": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [3, 490]}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("n_rows", [518, 500])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in ("llama", "tied") for kind in RESIZED])
def test_an_adapter_of_another_vocabulary_brings_its_tables(bases, tmp_path, capsys, name, kind, n_rows):
    wanted = train(bases[name], lora(**RESIZED[kind]), tmp_path / "adapter", n_rows=n_rows)
    if name == "llama" and kind in ("embedding", "head"):
        assert f"was trained with {n_rows} tokens" in refused(tmp_path, capsys)
        return
    assert main(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == n_rows == merged.get_parameter("model.embed_tokens.weight").shape[0]
    with torch.no_grad():
        ours = merged(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, wanted, rtol=0, atol=tolerance(tmp_path / "merged", wanted))
    assert main(["chat", str(tmp_path / "adapter"), "--prompt", "a", "--max-new-tokens", "2"]) == 0


def adalora(base: Path, folder: Path) -> torch.Tensor:
    """An AdaLoRA adapter that has given up ranks, one module all of them."""
    torch.manual_seed(1)
    kind = AdaLoraConfig(
        init_r=6, target_r=2, total_step=4, tinit=0, tfinal=1, deltaT=1, lora_alpha=8,
        target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), kind)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    for step in range(1, 5):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        allocate: Any = model.base_model
        allocate.update_and_allocate(step)
    model.save_pretrained(str(folder))
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    with torch.no_grad():
        return trained(input_ids=TOKENS).logits


def test_adalora(bases, tmp_path, capsys):
    wanted = adalora(bases["llama"], tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        ours = merged(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, wanted, rtol=0, atol=tolerance(tmp_path / "merged", wanted))
    before = AutoModelForCausalLM.from_pretrained(bases["llama"])
    for module in read_report(tmp_path / "adapter").modules:
        update = merged.get_parameter(f"{module.module}.weight") - before.get_parameter(f"{module.module}.weight")
        assert module.update_norm == pytest.approx(update.norm().item(), rel=1e-5, abs=1e-6)
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "adapter"), "--prompt", "a", "--max-new-tokens", "2"]) == 0


CLASSIFIERS = {
    "SEQ_CLS": (AutoModelForSequenceClassification, 3, "score"),
    "TOKEN_CLS": (AutoModelForTokenClassification, 5, "score"),
}


@pytest.mark.parametrize("task", CLASSIFIERS)
def test_a_classifiers_head_is_merged_and_does_not_chat(bases, tmp_path, capsys, task):
    kind, n_labels, head = CLASSIFIERS[task]
    folder, output = tmp_path / "adapter", tmp_path / "merged"
    options = {"num_labels": n_labels, "pad_token_id": 0}
    wanted = train(bases["llama"], lora(task_type=task), folder, kind, **options)
    assert main(["merge", str(folder), "-o", str(output)]) == 0
    assert f"{kind.__name__}.from_pretrained loads it" in capsys.readouterr().out
    merged = kind.from_pretrained(output, pad_token_id=0)
    assert merged.config.num_labels == n_labels
    trained = load_file(folder / "adapter_model.safetensors")[f"base_model.model.{head}.weight"]
    assert torch.equal(merged.get_parameter(f"{head}.weight"), trained)
    with torch.no_grad():
        ours = merged(input_ids=TOKENS).logits
    atol = 2 * logits_tolerance(merged, "float32") * wanted.abs().max().item()
    torch.testing.assert_close(ours, wanted, rtol=0, atol=atol)
    assert main(["chat", str(folder), "--prompt", "a"]) == 2
    assert f"task_type is {task}: a classifier has no answers" in capsys.readouterr().err
    change_weights(tmp_path, head, lambda tensors, name: tensors.pop(name))
    assert main(["merge", str(folder), "-o", str(tmp_path / "again")]) == 2
    assert f"base_model.model.{head}.weight is missing in the file" in capsys.readouterr().err


@pytest.fixture
def adapter(bases, tmp_path) -> Path:
    """A plain adapter of all linears, whose folder the tests of what is refused change."""
    train(bases["llama"], lora(target_modules=LINEARS), tmp_path / "adapter")
    return tmp_path


def refused(folder: Path, capsys, verb: str = "merge") -> str:
    options = {"chat": ["--prompt", "a"], "merge": ["-o", str(folder / "merged")]}.get(verb, [])
    assert main([verb, str(folder / "adapter"), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "\nhint: " in err
    assert not (folder / "merged").exists()
    return err


UP = "model.layers.0.mlp.up_proj"


def add(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda run: change_weights(run, "", lambda tensors, _: tensors.update({name: torch.zeros(shape)}))


def add_pair(run: Path) -> None:
    for matrix, shape in (("A", (4, 64)), ("B", (64, 4))):
        add(f"base_model.model.h.0.attn.lora_{matrix}.weight", *shape)(run)


def add_tables(run: Path) -> None:
    for table, n_rows in (("lm_head", 520), ("model.embed_tokens", 516)):
        add(f"base_model.model.{table}.weight", n_rows, 64)(run)


UNFIT: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "fewer targets": (
        lambda run: change_settings(run, target_modules=["q_proj"]),
        ("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight has no place there (24 such weights)",),
    ),
    "fewer layers": (lambda run: change_settings(run, layers_to_transform=[0]), ("model.layers.1.", "no place")),
    "excluded": (lambda run: change_settings(run, exclude_modules=["up_proj"]), (f"{UP}.lora_A.weight has no place",)),
    "a head": (add("base_model.model.score.weight", 2, 64), ("base_model.model.score.weight has no place", "(1 such")),
    "another model's": (add_pair, ("h.0.attn.lora_A.weight has no",)),
    "no prefix": (add("model.layers.0.mlp.up_proj.weight", 96, 64), (f"{UP}.weight has no place",)),
    "a layer is lost": (
        lambda run: change_weights(run, f"{UP}.lora_A", drop_layer),
        (f"base_model.model.{UP}.lora_A.weight is missing in the file (2 such weights)",),
    ),
    "a head is lost": (
        lambda run: change_settings(run, modules_to_save=["lm_head"]),
        ("base_model.model.lm_head.weight is missing in the file",),
    ),
    "magnitudes are lost": (lambda run: change_settings(run, use_dora=True), ("lora_magnitude_vector", "is missing")),
    "another rank": (
        lambda run: change_settings(run, r=8),
        ("lora_A.weight has shape [4, ", "the model takes [8, "),
    ),
    "another width": (add("base_model.model.lm_head.weight", 512, 32), ("has shape [512, 32]", "[512, 64]")),
    "one table of another vocabulary": (
        add("base_model.model.lm_head.weight", 520, 64),
        ("was trained with 520 tokens", "has 512, and the file does not hold model.embed_tokens"),
    ),
    "two vocabularies": (add_tables, ("embed_tokens.weight has shape [516, 64]", "[512, 64]")),
    "no such target": (lambda run: change_settings(run, target_modules=["c_attn"]), ("does not fit", "c_attn")),
}


@pytest.mark.parametrize("verb", ["merge", "chat"])
@pytest.mark.parametrize("case", UNFIT)
def test_weights_and_settings_that_differ_are_refused_before_the_base_is_loaded(
    adapter, capsys, monkeypatch, case, verb
):
    change, sentences = UNFIT[case]
    change(adapter)
    monkeypatch.setattr(load_adapter, "load_base", None)
    err = refused(adapter, capsys, verb)
    assert all(sentence in err for sentence in sentences), err


@pytest.mark.parametrize("verb", ["merge", "chat", "inspect"])
def test_a_pattern_that_does_not_come_to_an_end_is_refused(adapter, capsys, monkeypatch, verb):
    monkeypatch.setattr(patterns, "LIMIT", 1)
    monkeypatch.setattr(load_adapter, "load_base", None)
    change_settings(adapter, alpha_pattern={r"(\w+\.?)+!": 8})
    assert r"adapter_config.json: matching alpha_pattern (\w+\.?)+! with module names" in refused(adapter, capsys, verb)


def test_an_adapter_of_another_architecture_is_refused(adapter, bases, capsys):
    change_settings(adapter, base_model_name_or_path=str(bases["gpt2"]))
    assert "does not fit" in refused(adapter, capsys)


def test_a_trained_bias_needs_one_in_the_base_to_be_merged_into(bases, tmp_path, capsys, monkeypatch):
    train(bases["llama"], lora(lora_bias=True), tmp_path / "adapter")
    assert main(["chat", str(tmp_path / "adapter"), "--prompt", "a", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(load_adapter, "load_base", None)
    err = refused(tmp_path, capsys)
    assert f"lora_bias is true, and model.layers.0.self_attn.q_proj of {bases['llama']} has no bias" in err


@pytest.mark.parametrize("settings", [{"layer_replication": [[0, 2], [1, 2]]}, {"alora_invocation_tokens": [5, 6]}])
def test_what_cannot_be_merged_still_chats(bases, tmp_path, capsys, settings):
    train(bases["llama"], lora(**settings), tmp_path / "adapter")
    assert main(["chat", str(tmp_path / "adapter"), "--prompt", "a", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert f"{next(iter(settings))} is [" in refused(tmp_path, capsys)


def test_code_and_torn_files_beside_an_adapter(adapter, bases, capsys):
    folder, ran = adapter / "adapter", adapter / "ran"
    AutoTokenizer.from_pretrained(bases["llama"]).save_pretrained(folder)
    own = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    remote = own | {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(remote))
    main(["merge", str(folder), "-o", str(adapter / "first"), "--trust-remote-code"])
    assert not ran.exists()
    capsys.readouterr()
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "tokenizer.json").write_text("{")
    assert f"the tokenizer in {folder} cannot be loaded" in refused(adapter, capsys)


def test_several_adapters_in_one_folder(adapter, bases, capsys):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(bases["llama"]), lora(), adapter_name="first")
    model.add_adapter("second", lora(r=2))
    model.save_pretrained(str(adapter / "several"))
    shutil.copytree(adapter / "several" / "first", adapter / "one" / "first")
    assert main(["merge", str(adapter / "several")]) == 2
    err = capsys.readouterr().err
    assert f"{adapter / 'several'} holds several adapters: first, second" in err
    assert f"name the folder of one of them: {adapter / 'several' / 'first'}" in err
    assert main(["inspect", str(adapter / "several" / "second")]) == 0
    assert "r 2," in capsys.readouterr().out
    assert read_adapter(adapter / "one").folder == adapter / "one" / "first"
    shutil.copytree(adapter / "several" / "second", adapter / "adapter" / "second")
    assert main(["chat", str(adapter / "adapter"), "--prompt", "a", "--max-new-tokens", "1"]) == 0
    assert "holds other adapters besides the one directly in it: second" in capsys.readouterr().err


def test_a_base_with_an_adapter_of_its_own_is_refused(adapter, bases, tmp_path, capsys):
    base = tmp_path / "both"
    shutil.copytree(bases["llama"], base)
    shutil.copy(adapter / "adapter" / "adapter_config.json", base)
    change_settings(adapter, base_model_name_or_path=str(base))
    assert f"{base}, holds an adapter of its own" in refused(adapter, capsys)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a whole safetensors file"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "holds no LoRA tensors"),
        (b"\xff" * 64, "is not a whole safetensors file"),
    ],
)
def test_a_torn_or_empty_file_is_refused(adapter, capsys, content, sentence):
    file = adapter / "adapter" / "adapter_model.safetensors"
    whole = file.read_bytes()
    for bytes_left in (content, whole[: len(whole) // 2]):
        file.write_bytes(bytes_left)
        assert str(file) in refused(adapter, capsys)
    file.write_bytes(content)
    assert sentence in refused(adapter, capsys, "chat")


def test_a_value_that_is_not_finite_is_refused_wherever_it_is(bases, tmp_path, capsys):
    train(bases["llama"], lora(modules_to_save=["lm_head"]), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"][3, 3] = torch.inf
    save_file(tensors, file)
    assert "1 of its values are not finite, for example in lm_head.weight" in refused(tmp_path, capsys)
