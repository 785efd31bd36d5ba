"""The callback inside TRL's trainers, beside the same training without it. Skipped where trl is not installed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.instrument import InstrumentCallback, load_run
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from ...conftest import ON_GPU
from .test_peers import norms

trl: Any = pytest.importorskip("trl", reason="trl is not installed")

WORDS = ["red", "blue", "small", "big", "cat", "dog", "ran", "sat", "on", "the", "mat", "road"]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SITES = r"layers\.1\.mlp\.down_proj:(out|grad_out|grad_in|lora_B\.grad)$"


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({word: at for at, word in enumerate([*SPECIAL.values(), *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)


def texts(*columns: str) -> Any:
    from datasets import Dataset

    chosen = random.Random(0)
    return Dataset.from_list([{column: " ".join(chosen.choices(WORDS, k=6)) for column in columns} for _ in range(16)])


def made(kind: str, folder: Path) -> Any:
    """A Trainer of TRL on a tiny LLaMA with LoRA."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config.num_labels = 1
    arguments: dict[str, Any] = {
        "max_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": not ON_GPU, "bf16": False,
    }  # fmt: skip
    is_reward = kind == "reward"
    model = (LlamaForSequenceClassification if is_reward else LlamaForCausalLM)(config)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="SEQ_CLS" if is_reward else "CAUSAL_LM")
    how: dict[str, Any] = {"processing_class": tokenizer(), "peft_config": lora}
    out = str(folder / "out")
    if kind == "SFT":
        return trl.SFTTrainer(model, args=trl.SFTConfig(out, **arguments), train_dataset=texts("text"), **how)
    if kind == "DPO":
        rows = texts("prompt", "chosen", "rejected")
        return trl.DPOTrainer(model, args=trl.DPOConfig(out, **arguments), train_dataset=rows, **how)
    if is_reward:
        rows = texts("chosen", "rejected")
        return trl.RewardTrainer(model, args=trl.RewardConfig(out, **arguments), train_dataset=rows, **how)
    if kind == "KTO":
        rows = texts("prompt", "completion")
        rows = rows.add_column("label", [bool(at % 2) for at in range(len(rows))])
        return trl.KTOTrainer(model, args=trl.KTOConfig(out, **arguments), train_dataset=rows, **how)
    trainer, config = (trl.RLOOTrainer, trl.RLOOConfig) if kind == "RLOO" else (trl.GRPOTrainer, trl.GRPOConfig)
    given = config(out, num_generations=4, max_completion_length=5, beta=0.1, **arguments)
    scored: Callable[..., list[float]] = lambda completions, **_: [float(len(set(one.split()))) for one in completions]  # noqa: E731
    return trainer(model, reward_funcs=scored, args=given, train_dataset=texts("prompt"), **how)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("kind", ["SFT", "DPO", "KTO", "reward", "GRPO", "RLOO"])
def test_it_trains_as_without_the_callback_and_is_recorded(tmp_path, kind, fuse):
    plain = made(kind, tmp_path)
    plain.train()
    watched = made(kind, tmp_path)  # after the other's: what is sampled is drawn from the seed that this sets
    watched.add_callback(InstrumentCallback(tmp_path / "run", fuse=fuse, probe_every=2, histogram_every=2))
    watched.train()
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    logged = [entry for entry in watched.state.log_history if "grad_norm" in entry]
    metrics = load_run(tmp_path / "run").metrics()
    assert metrics["loss"].tolist() == pytest.approx([entry["loss"] for entry in logged], abs=2e-4)
    assert metrics["grad_norm"].tolist() == pytest.approx([float(entry["grad_norm"]) for entry in logged], rel=1e-3)
    found = norms(tmp_path / "run", SITES)
    assert len(found) == 3 * 4
    assert all(value > 0 for value in found)
    assert not any("FusedForward" in str(module.__dict__.get("forward")) for module in watched.model.modules())
