"""transformers' own Trainer with InstrumentCallback(fuse=True) under the fake driver, with generation between steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .driver import fake_cuda
from .runs import LENGTHS, Seen, Step, watched_or_not, write_model, zeros_in_fresh_memory

# The callback reads what it has found of a step once, at its end.
WANTED = "Tensor.tolist reads a number: instrument/attach/step.py"


def train(
    folder: Path, chip: int, family: str, n_steps: int, lengths: Sequence[int] = LENGTHS, watch: bool = True
) -> Seen:
    """Trains and generates three tokens between any two steps, each of one row of one token."""
    from lora_train.instrument import InstrumentCallback
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    if not (folder / family).exists():
        write_model(folder / family, family)
    base = AutoModelForCausalLM.from_pretrained(folder / family, dtype=torch.float16)
    model: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    rows = [{"input_ids": [1 + i % 100 for i in range(n)]} for n in lengths]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    arguments: dict[str, Any] = {
        "max_steps": n_steps, "per_device_train_batch_size": 1, "logging_steps": 100, "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    with fake_cuda(chip) as driver, zeros_in_fresh_memory():
        seen = Seen(driver)

        class Watched(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.context = watched_or_not(watch)
                self.waits = self.context.__enter__()
                self.before, self.n_variants = driver.launches.copy(), len(driver.variants)

            def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
                self.context.__exit__(None, None, None)
                faults = [fault for fault in self.waits.faults if in_the_repository(fault)]
                new = len(driver.variants) - self.n_variants
                seen.steps.append(Step(state.global_step, driver.launches - self.before, new, faults))
                seen.n_after_first_step = seen.n_after_first_step or len(driver.variants)
                model.eval()
                model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)
                model.train()

        trainer = Trainer(model, TrainingArguments(str(folder / "out"), **arguments), train_dataset=rows)  # type: ignore[reportArgumentType]
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Watched())
        trainer.add_callback(InstrumentCallback(folder / "attached", fuse=True, histogram_every=2, probe_every=2))
        trainer.train()
        seen.code = 0
    return seen


def in_the_repository(fault: str) -> bool:
    """Whether our code did it: the Trainer waits by itself, for its loss and its clipping."""
    return "outside the repository" not in fault and not fault.startswith(WANTED)
