"""One contender: `python -m benchmarks.overhead.contender NAME CONFIG.json`.

Waits before every step for a line on standard input, and answers every step with a line of JSON on standard output:
wall and CPU seconds since it was let go, loss, and the peak of the resident set so far. The steps are those of the
contender's own loop, with all that happens between two of them.

    stock        transformers.Trainer and peft
    foreach      the same with the norm of every LoRA gradient after each step (torch._foreach_norm), read on the host
    plain        lora-train with instrument.enabled=false
    instrumented lora-train as it comes: every site, every step, store and detectors
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("stock", "foreach", "plain", "instrumented")


class Gate:
    """Between two steps: reports the last one and waits to be let go."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(1), "w")  # what libraries print goes to the error stream
        os.dup2(2, 1)
        self._started: tuple[float, float] | None = None

    def __call__(self, loss: float | None) -> None:
        """Called where a step begins.

        Args:
            loss: of the step before.
        """
        if self._started is not None:
            wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
            line = {"wall": wall, "cpu": cpu, "loss": loss, "peak_mib": peak_mib()}
            print(json.dumps(line), file=self._pipe, flush=True)
        else:
            print(json.dumps({"ready": True, "peak_mib": peak_mib()}), file=self._pipe, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self._started = time.perf_counter(), time.process_time()


def peak_mib() -> float:
    """Largest resident set so far (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def ours(settings: dict[str, Any], instrumented: bool, gate: Gate) -> None:
    """lora-train's own run, stopped before every step."""
    from lora_train.trainer import loop
    from lora_train.trainer.config import Config
    from lora_train.trainer.run import run

    step: Callable[..., Any] = loop.train_step
    last: list[float | None] = [None]

    def gated(parts: Any, number: int) -> Any:
        gate(last[0])
        row = step(parts, number)
        last[0] = row[0].item()
        return row

    loop.train_step = gated
    settings["instrument"] = {"enabled": instrumented}
    run(Config.model_validate(settings), None)


def stock(settings: dict[str, Any], norms: bool, gate: Gate) -> None:
    """The Trainer on the same tokens in the same order."""
    import torch
    from lora_train.trainer.batches import collate
    from lora_train.trainer.config import Config
    from lora_train.trainer.data import IGNORE_INDEX, load_examples
    from lora_train.trainer.model import load_base, load_tokenizer, pad_token_id
    from lora_train.trainer.parts import order_of
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    config = Config.model_validate(settings)
    tokenizer = load_tokenizer(config)
    data = load_examples(config.data.train, config.data, tokenizer)
    plan, pad = order_of(config, data, 1), pad_token_id(tokenizer)
    n_steps, training = config.training.max_steps, config.training
    rows: Any = [{"example": e} for step in range(1, n_steps + 1) for micro in plan.step(step) for e in micro]

    def collator(batch: list[Any]) -> dict[str, torch.Tensor]:
        found = collate([row["example"] for row in batch], pad)
        labels = torch.full_like(found.input_ids, IGNORE_INDEX)
        labels.view(-1)[found.positions + 1] = found.targets
        return {"input_ids": found.input_ids, "attention_mask": torch.ones_like(found.input_ids), "labels": labels}

    torch.manual_seed(training.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=config.lora.r, lora_alpha=int(config.lora.lora_alpha),
        lora_dropout=config.lora.lora_dropout, target_modules=config.lora.target_modules,
    )  # fmt: skip
    model = get_peft_model(load_base(config, torch.device("cpu")), lora)

    class Watched(Trainer):
        """Keeps the loss of the last step, and the order of the rows."""

        last: float | None = None

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return range(len(rows))

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.last = loss.item()
            return loss

    class Gated(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate(trainer.last)

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            if norms:
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                torch.stack(torch._foreach_norm(gradients)).tolist()

    arguments = TrainingArguments(
        output_dir=training.output_dir, per_device_train_batch_size=training.per_device_train_batch_size,
        max_steps=n_steps, learning_rate=training.learning_rate, optim=training.optim, logging_steps=10,
        report_to=[], save_strategy="no", remove_unused_columns=False, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Watched(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[Gated()])
    trainer.train()


def main() -> None:
    name, path = sys.argv[1:]
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    gate = Gate()
    if name in ("stock", "foreach"):
        stock(settings, name == "foreach", gate)
    else:
        ours(settings, name == "instrumented", gate)


if __name__ == "__main__":
    main()
