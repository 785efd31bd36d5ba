"""Tokens without an embedding, rows without a position, modules that are not there: said before anything is written."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from lora_train.instrument.messages import say
from lora_train.trainer.cli import main
from lora_train.trainer.errors import UserError, problem
from lora_train.trainer.model import fit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

SETTINGS = ["training.max_steps=1", "data.cache=false", "training.report_to=none"]


@pytest.fixture
def folder(tiny_models, tmp_path):
    shutil.copytree(tiny_models["llama"], tmp_path / "model")
    rows = [{"instruction": "물은?<회사>", "output": "100도<끝>"}, {"instruction": "물은?", "output": "100도"}] * 2
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "c.yaml").write_text("lora: {r: 2}\ntraining: {per_device_train_batch_size: 2}\n", encoding="utf-8")
    return tmp_path


def run(folder, *settings: str) -> int:
    places = [f"model.name_or_path={folder / 'model'}", f"data.train={folder / 'rows.jsonl'}"]
    output = f"training.output_dir={folder / 'run'}"
    return main(["--config", str(folder / "c.yaml"), *places, output, *SETTINGS, *settings])


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_tokens_past_the_embedding_table_are_named(folder, capsys, more):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["<회사>", "<끝>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "model")
    assert run(folder, *more) == 2
    said = capsys.readouterr()
    assert "2 rows hold tokens past the 512 rows of the model's embedding table: <회사> (512), <끝> (513)" in said.err
    assert "model.resize_embeddings=true gives the model 514 rows" in said.err
    assert not (folder / "run").exists()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_resized_tables_are_trained_saved_merged_and_asked(folder, capsys, tied):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["<회사>", "<끝>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", tie_word_embeddings=tied)
    model.save_pretrained(folder / "model")
    learning = ["training.max_steps=4", "training.learning_rate=1e-2", "training.warmup_ratio=0"]
    assert run(folder, "model.resize_embeddings=true", "--dry-run") == 0
    assert run(folder, "model.resize_embeddings=true", *learning) == 0
    saved = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    sizes = {name: len(tensor) for name, tensor in saved.items() if "lora" not in name}
    assert sizes == {"base_model.model.lm_head.weight": 514, "base_model.model.model.embed_tokens.weight": 514}
    assert main(["merge", str(folder / "run")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(folder / "run" / "merged")
    tables: Any = (
        (merged.get_input_embeddings(), model.get_input_embeddings()),
        (merged.lm_head, model.lm_head),
    )
    for table, before in tables:
        new = table.weight[512:]
        assert ((new - before.weight.mean(dim=0)).abs().amax(dim=1) > 1e-3).all()
    assert main(["chat", str(folder / "run"), "--prompt", "물은?<회사>", "--max-new-tokens", "2"]) == 0
    assert run(folder, "model.resize_embeddings=true", "training.max_steps=5", "--resume", str(folder / "run")) == 0


def test_a_trained_model_is_not_asked_for_tokens_past_its_table(folder, capsys):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["<회사>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "model")
    asked, trained = folder / "rows.jsonl", folder / "trained.jsonl"
    trained.write_text(json.dumps({"instruction": "물은?", "output": "100도"}), encoding="utf-8")
    assert run(folder, f"data.train={trained}") == 0
    for verb in (["predict", "-o", str(folder / "out.jsonl")], ["evaluate"]):
        assert main([verb[0], str(folder / "run"), str(asked), *verb[1:]]) == 2
        assert "2 rows hold tokens past the 512 rows" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()
    assert main(["chat", str(folder / "run"), "--prompt", "물은?<회사>"]) == 2
    assert "the prompt holds tokens past the 512 rows of the model's embedding table: <회사> (512)" in (
        capsys.readouterr().err
    )


def test_a_padding_token_past_the_table_does_no_harm(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_special_tokens({"pad_token": "<채움>"})
    tokenizer.save_pretrained(folder / "model")
    assert tokenizer.pad_token_id >= 512
    assert run(folder, "data.padding_free=false") == 0


def test_rows_past_the_last_position_are_an_error_where_positions_are_a_table_and_else_said(folder, capsys):
    row = {"instruction": "가" * 900, "output": "나"}
    (folder / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 2), encoding="utf-8")
    assert run(folder, "data.cutoff_len=4096") == 0
    assert "2 rows are longer than the 512 tokens the model was made for" in capsys.readouterr().out
    shutil.rmtree(folder / "run")
    config = GPT2Config(vocab_size=512, n_positions=512, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    assert run(folder, "data.cutoff_len=4096") == 2
    said = capsys.readouterr().err
    assert "2 rows are longer than the 512 positions of the model" in said
    assert "data.cutoff_len=512" in said
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("key", "wanted", "said"),
    [
        ("target_modules", "[q_proj,query_key_value]", "nothing in the model is called query_key_value"),
        ("target_modules", "[q_proj,'']", "nothing in the model is called"),
        ("target_modules", "[q_proj,vproj]", "did you mean v_proj"),
        ("modules_to_save", "[lm_head,embed_token]", "did you mean embed_tokens"),
        ("modules_to_save", "[score]", "nothing in the model is called score"),
    ],
)
def test_a_module_that_is_not_there_among_others_that_are_is_an_error(folder, capsys, key, wanted, said):
    assert run(folder, f"lora.{key}={wanted}") == 2
    assert said in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_an_adapter_that_is_trained_is_told_of_no_setting(monkeypatch):
    def refuse(*_: object) -> None:
        raise UserError(problem("fit.no_position", source="q.jsonl", count=1, limit=8, row=0, longest=9))

    monkeypatch.setattr(fit, "require_fit", refuse)
    nothing: Any = None
    with pytest.raises(UserError, match=r"q\.jsonl: 1 rows are longer than the 8 positions") as refused:
        fit.require_answerable(nothing, nothing, nothing)
    (found,) = refused.value.problems
    assert found.hint == say("fit.trained")
