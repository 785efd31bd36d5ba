"""TRL's SFTTrainer with lora-train's instrument: one line more. Needs `pip install trl`.

python examples/recipes/trl_sft.py MODEL ROWS.jsonl OUT
"""

import sys

import torch
from datasets import load_dataset
from lora_train.instrument import InstrumentCallback
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

name, rows, out = sys.argv[1:]
data = load_dataset("json", data_files=rows, split="train")
data = data.map(lambda row: {"prompt": row["instruction"], "completion": row["output"]})
trainer = SFTTrainer(
    name,
    args=SFTConfig(out, max_steps=30, logging_steps=5, report_to=[], use_cpu=not torch.cuda.is_available()),
    train_dataset=data.select_columns(["prompt", "completion"]),
    peft_config=LoraConfig(r=8, target_modules="all-linear"),
)
trainer.add_callback(InstrumentCallback(f"{out}/instrument"))
trainer.train()
