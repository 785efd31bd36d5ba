"""Runs exported files in llama.cpp and compares its logits with PEFT's: `python -m benchmarks.llama_cpp [RUN]`.

A tiny model of each family, as a merged file and as an adapter file on the base, float32; and a run of yours.
Needs `pip install llama-cpp-python`, which compiles llama.cpp: 5 minutes of one core here.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from lora_train.trainer.cli import main as lora_train
from lora_train.trainer.export.families import family_of
from lora_train.trainer.export.model_file import write_model_file
from lora_train.trainer.verbs.adapter_folder import read_adapter
from lora_train.trainer.verbs.load_adapter import load_trained
from lora_train.trainer.verbs.merge import tokenizer_of

from .engine import Engine
from .families import FAMILIES, make_adapter, make_base

ROWS = Path(__file__).resolve().parents[2] / "examples" / "data" / "koalpaca_mini.jsonl"
TEXTS = (
    "### 질문: 대한민국의 수도는 어디인가요?\n\n### 답변:",
    "It's 2024; 12,345 apples aren't   cheap.\n\n\tdef f(x): return x**2",
    "<|im_start|>user\nhi<|im_end|>\n",
)
ROW = "{:<24} {:<10} {:>12} {:>10} {:>10}"


def tiny_tokenizer() -> Any:
    """Byte-level BPE of 512 tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(ROWS)], vocab_size=512, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")


def compare(name: str, adapter: Path, ids: list[int], folder: Path) -> None:
    """Prints how far llama.cpp is from PEFT: merged, and the adapter on the base."""
    found = read_adapter(adapter)
    with torch.no_grad():
        settings = {"model.dtype": "float32", "training.fp16": False, "training.bf16": False}
        model = load_trained(found, settings, torch.device("cpu"))
        wanted = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        base: Any = model.unload()
    tokenizer = tokenizer_of(found)
    files = {"merged": folder / "merged.gguf", "adapter": folder / "lora.gguf", "base": folder / "base.gguf"}
    assert (
        lora_train(["export", str(adapter), "--to", "merged-gguf", "--dtype", "float32", "-o", str(files["merged"])])
        == 0
    )
    assert lora_train(["export", str(adapter), "--to", "gguf-adapter", "-o", str(files["adapter"])]) == 0
    write_model_file(base, tokenizer, family_of(base.config, name), "float32", files["base"])
    merged = Engine(files["merged"])
    for form, engine in (("merged", merged), ("adapter", Engine(files["base"], files["adapter"]))):
        got = engine.logits(ids)
        same = float((got.argmax(1) == wanted.argmax(1)).mean())
        print(
            ROW.format(name, form, f"{abs(got - wanted).max():.1e}", f"{abs(wanted).max():.1f}", f"{same:.0%}"),
            flush=True,
        )
    if len(tokenizer) > 1000:
        equal = [merged.tokens(text) == tokenizer(text)["input_ids"] for text in TEXTS]
        print(f"{name}: {sum(equal)} of {len(equal)} texts are cut the same", flush=True)


def run(adapter: Path | None) -> int:
    """Prints the table; the exit code."""
    if importlib.util.find_spec("llama_cpp") is None:
        print("error: llama-cpp-python is not installed\nhint: pip install llama-cpp-python", file=sys.stderr)
        return 2
    transformers.logging.set_verbosity_error()
    tokenizer = tiny_tokenizer()
    print(ROW.format("model", "file", "difference", "largest", "same top"))
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            base = make_base(family, folder / "base", tokenizer)
            compare(family, make_adapter(base, folder / "adapter"), [*range(3, 27)], folder)
    if adapter is not None:
        ids = tokenizer_of(read_adapter(adapter))(TEXTS[0])["input_ids"]
        with tempfile.TemporaryDirectory() as place:
            compare(adapter.name, adapter, ids, Path(place))
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
