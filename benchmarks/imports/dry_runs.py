"""`lora-train --dry-run` of an imported configuration, with the model and the rows replaced by tiny ones."""

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
        changes = [f"model.name_or_path={self._model}", "model.revision=null", f"data.train={rows}"]
        if asked.data.eval is not None:
            changes.append(f"data.eval={rows}")
        key = read_config(path, changes).model_dump_json()
        if key not in self._outcomes:
            self._outcomes[key] = self._outcome(path, changes)
        return self._outcomes[key]

    def _outcome(self, path: Path, changes: list[str]) -> str:
        from lora_train.trainer.dry_run.show import dry_run

        what = ""
        for more, outcome in (([], "ok"), (["lora.target_modules=all-linear"], "ok, targets replaced")):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    dry_run(read_config(path, changes + more))
            except UserError as error:
                what = error.problems[0].error
                continue
            return outcome
        return what.replace(str(self._folder), "")


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
