"""The stock Trainer with lora-train's instrument: two lines more. Needs a model and a file of rows; runs on a CPU.

python examples/stock_trainer.py MODEL ROWS.jsonl OUT [name=value of TrainingArguments ...]
"""

import sys

from datasets import load_dataset
from lora_train.instrument import InstrumentCallback
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

name, rows, out, *options = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = get_peft_model(AutoModelForCausalLM.from_pretrained(name), LoraConfig(r=8, target_modules="all-linear"))
data = load_dataset("json", data_files=rows, split="train")
data = data.map(lambda row: tokenizer(row["output"], truncation=True, max_length=128), remove_columns=data.column_names)
values = {key: float(value) for key, value in (option.split("=") for option in options)}
arguments = TrainingArguments(out, **{"max_steps": 30, "logging_steps": 5, "report_to": [], **values})
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
trainer.add_callback(InstrumentCallback(f"{out}/instrument"))
trainer.train()
