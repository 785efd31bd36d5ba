"""Rows in every format that was ever read, and what they gave: `python -m tests.trainer.data.as_before` prints it.

The fingerprints are of tokens, masks and row numbers. They are only changed where a change of tokens is meant.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from lora_train.trainer.config.schema import DataSection
from lora_train.trainer.data.examples import load_examples
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from .test_conversations import CHATML, LLAMA2, PLAIN, TAGGED, TURNS

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "examples" / "data"
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": NAMES[turn["role"]], "value": turn["content"]} for turn in TURNS]
ASKED = {"instruction": "수도는?", "output": "서울입니다."}
ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "koalpaca": ([ASKED, {"instruction": "Name a colour", "output": "Blue 💙", "id": 7}], {}),
    "alpaca": ([{**ASKED, "input": ""}, {"instruction": "Add", "input": "1 2", "output": "3"}], {}),
    "prompt_completion": ([{"prompt": "a b", "completion": " c"}], {}),
    "text": ([{"text": "서울은 대한민국의 수도입니다."}], {}),
    "inputs": ([ASKED], {"train_on_inputs": True}),
    "template": ([{"q": "수도는?", "a": "서울"}], {"prompt_template": "Q: {q} A: {a}!"}),
    "chatml": ([{"messages": TURNS}, {"messages": TURNS[1:3]}], {"chat_template": CHATML}),
    "chatml_user_last": ([{"messages": TURNS[:4]}], {"chat_template": CHATML}),
    "llama2": ([{"messages": TURNS}], {"chat_template": LLAMA2}),
    "tagged": ([{"messages": TURNS}], {"chat_template": TAGGED}),
    "plain": ([{"messages": TURNS}], {"chat_template": PLAIN}),
    "sharegpt": ([{"conversations": SHAREGPT}], {"chat_template": CHATML}),
    "chat_inputs": ([{"messages": TURNS}], {"chat_template": CHATML, "train_on_inputs": True}),
}


def fingerprints() -> dict[str, str]:
    """What every kind of row gives."""
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    bpe.train([str(DATA / "koalpaca_mini.jsonl")], vocab_size=512, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (rows, settings) in ROWS.items():
            path = Path(folder) / f"{name}.jsonl"
            path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
            section = DataSection.model_validate({"train": str(path), "cache": False, **settings})
            found[name] = load_examples(str(path), section, tokenizer).fingerprint()
        for path in sorted(DATA.glob("koalpaca*.jsonl")):
            section = DataSection.model_validate({"train": str(path), "cache": False})
            found[path.name] = load_examples(str(path), section, tokenizer).fingerprint()
    return found


if __name__ == "__main__":
    print(json.dumps(fingerprints(), indent=4))
