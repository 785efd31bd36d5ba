"""The memory that `--dry-run` predicts beside the peak of a real run: `python -m benchmarks.memory [CASE ...]`.

Every case is a run of two steps in a process of its own. On the CPU its peak is the growth of the resident set
(VmHWM) over what it was when the libraries had been imported, on CUDA torch.cuda.max_memory_allocated. Models have
8 layers of width 512: small enough for a few seconds a step, large enough for their tensors to matter. Gaps in the heap
are measured and predicted as a user has them; they vary with what else the machine does, and a test leaves them out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_train.trainer.config.schema import Config

VOCABULARY, WIDTH, LAYERS, LENGTH, BATCH = 4096, 512, 8, 512, 4
N_ROWS = 2 * BATCH

CASES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "gpt_neox-fp32": ("gpt_neox", {}),
    "llama-fp16-checkpointing": ("llama", {"training": {"fp16": True, "gradient_checkpointing": True}}),
    "llama-nf4": (
        "llama",
        {
            "training": {"fp16": True, "optim": "adamw_8bit"},
            "quantization": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        },
    ),
    "gpt_neox-fp16-one-target": (
        "gpt_neox",
        {"training": {"fp16": True}, "lora": {"target_modules": ["query_key_value"], "lora_dropout": 0.0}},
    ),
    "llama-bf16-batch-8": ("llama", {"training": {"bf16": True, "per_device_train_batch_size": 8}}),
    "llama-fp32-checkpointing": ("llama", {"training": {"gradient_checkpointing": True}}),
}


# Large blocks are mapped one by one and given back when they are freed; one thread, as the prediction has it.
WITHOUT_GAPS = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Row:
    """Bytes at the peak of one case."""

    case: str
    measured: int
    predicted: int

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1


def write_model(folder: Path, arch: str) -> None:
    """Writes a random float32 model, a tokenizer of words and rows that are longer than LENGTH."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "max_position_embeddings": 2 * LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    if arch == "gpt_neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4))
    model.save_pretrained(folder)
    lines = (" ".join(f"w{1 + (37 * row + i) % 4000}" for i in range(LENGTH + 50)) for row in range(N_ROWS))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def config_of(case: str, folder: Path) -> Config:
    """The configuration of a case whose model lies in `folder`."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name_or_path": str(folder)},
        "data": {"train": str(folder / "rows.jsonl"), "format": "text", "cutoff_len": LENGTH},
        "lora": {"r": 8, "lora_dropout": 0.05},
        "training": {
            "output_dir": str(folder / f"run-{case}"),
            "per_device_train_batch_size": BATCH,
            "max_steps": 2,
            "save_strategy": "no",
        },
    }
    for section, settings in CASES[case][1].items():
        values.setdefault(section, {}).update(settings)
    return Config.model_validate(values)


def predicted(case: str, folder: Path, gaps: bool) -> int:
    """Bytes at the peak, from the model's config; with or without the heap's gaps."""
    from lora_train.trainer.dry_run.fake_model import make_fake
    from lora_train.trainer.dry_run.memory import Shape, heap_gaps, predict
    from lora_train.trainer.loop.engine import Engine

    config = config_of(case, folder)
    n_rows = config.training.per_device_train_batch_size
    fake = make_fake(config, Engine().device)
    memory = predict(fake, Shape((LENGTH,) * n_rows, n_rows * (LENGTH - 1)))
    return memory.total - (0 if gaps else heap_gaps(fake, memory.step))


def measured(case: str, folder: Path, gaps: bool) -> int:
    """Bytes at the peak of a run of its own, with the heap's gaps or where there are none."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(folder), case]
    env = os.environ if gaps else {**os.environ, **WITHOUT_GAPS}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def _child(case: str, folder: Path) -> None:
    import torch
    from lora_train.trainer.console import quiet_libraries
    from lora_train.trainer.run.start import run

    quiet_libraries()
    before = _resident("VmRSS")
    run(config_of(case, folder), None)
    print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


def compared(case: str, folder: Path, gaps: bool = True) -> Row:
    """Both numbers of a case; its model is written where it is missing."""
    model = folder / CASES[case][0]
    if not model.exists():
        write_model(model, CASES[case][0])
    return Row(case, measured(case, model, gaps), predicted(case, model, gaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--child", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        _child(arguments.cases[0], arguments.child)
        return
    print(f"{'case':<28} {'measured':>12} {'predicted':>12} {'error':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.cases or CASES:
            row = compared(case, Path(folder))
            mib = [f"{n / 2**20:,.0f} MiB" for n in (row.measured, row.predicted)]
            print(f"{case:<28} {mib[0]:>12} {mib[1]:>12} {row.error:>+8.1%}", flush=True)


if __name__ == "__main__":
    main()
