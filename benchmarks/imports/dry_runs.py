"""`lora-train --dry-run` of an imported configuration, with the model and the rows replaced by tiny ones.

Rates, steps, sizes, optimizer and checkpointing, which the reader has accepted, are set to one small value each, so
that configurations of one kind are run once. Lists of targets that a LLaMA has stand for one another; targets that it
has not are replaced by all-linear, which is said.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from lora_train.trainer.checks.read_config import read_config
from lora_train.trainer.errors import UserError

CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well, thank you."}]
ROWS = {
    "alpaca": {"instruction": "Say hello.", "input": "", "output": "Hello."},
    "messages": {"messages": TURNS},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello there."}]},
    "text": {"text": "A line of text that is read as it stands."},
}
ROWS["auto"] = ROWS["messages"]
TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
SMALL = (
    "lora.r=4", "lora.lora_alpha=8", "lora.lora_dropout=0", "data.cutoff_len=256", "data.limit=null",
    "data.eval_fraction=0", "training.output_dir=run", "training.per_device_train_batch_size=1",
    "training.per_device_eval_batch_size=1", "training.gradient_accumulation_steps=1", "training.num_train_epochs=1",
    "training.max_steps=-1", "training.learning_rate=1e-4", "training.lr_scheduler_type=linear", "training.seed=0",
    "training.warmup_steps=0", "training.warmup_ratio=0", "training.weight_decay=0", "training.adam_beta2=0.999",
    "training.adam_epsilon=1e-8", "training.max_grad_norm=1", "training.logging_steps=1", "training.eval_strategy=no",
    "training.save_strategy=no", "training.save_steps=500", "training.save_total_limit=null",
    "training.early_stopping_patience=null", "training.load_best_model_at_end=false",
    "training.optim=adamw_torch_fused", "training.gradient_checkpointing=false",
)  # fmt: skip


class DryRuns:
    """A tiny LLaMA with a chat template, rows of every format, and the outcomes of what has been run."""

    def __init__(self, folder: Path):
        self._folder, self._outcomes = folder, {}
        self._model = folder / "model"
        _make_model(self._model)
        for name, row in ROWS.items():
            (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 40, encoding="utf-8")

    def run(self, path: Path) -> str:
        """ "ok", "ok, targets replaced", or what went wrong."""
        asked = read_config(path, ("model.name_or_path=owner/model", "data.train=owner/data"))
        rows = self._folder / f"{asked.data.format}.jsonl"
        changes = [f"model.name_or_path={self._model}", "model.revision=null", f"data.train={rows}", "data.eval=null"]
        targets = asked.lora.target_modules
        listed = isinstance(targets, list) and set(targets) <= TARGETS
        are_there = listed or targets == "all-linear"
        changes += [*SMALL, f"lora.target_modules={'[q_proj, down_proj]' if listed else 'all-linear'}"]
        key = read_config(path, changes).model_dump_json()
        if key not in self._outcomes:
            self._outcomes[key] = self._outcome(path, changes)
        outcome = self._outcomes[key]
        return outcome if are_there or outcome != "ok" else "ok, targets replaced"

    def _outcome(self, path: Path, changes: list[str]) -> str:
        from lora_train.trainer.dry_run.show import dry_run

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                dry_run(read_config(path, changes))
        except UserError as error:
            return error.problems[0].error.replace(str(self._folder), "")
        return "ok"


def _make_model(folder: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [json.dumps(row) for row in ROWS.values()], vocab_size=300, special_tokens=["<|endoftext|>"]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", chat_template=CHAT)
    sizes: dict[str, Any] = {
        "vocab_size": 320, "max_position_embeddings": 65536, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
