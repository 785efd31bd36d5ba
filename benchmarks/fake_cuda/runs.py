"""Whole runs of lora-train under the fake driver, through its own command line, and what each step asked of the GPU.

    python -m benchmarks.fake_cuda [--chip 90] [--compile]

Tiny random models, rows of chosen lengths. Kernels write nothing and fresh memory is zero, so every loss is 0 and no
gradient is anything: what is looked at is what would be launched, compiled and waited for. The loss of a planted
row is NaN, so that what follows a collapse runs too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from .driver import FakeDriver, Variant, fake_cuda
from .waits import Waits, watched

LENGTHS = (2, 17, 48, 273, 274, 820, 1025)
"""Tokens of the rows: an edge of a block, a row alone in its block, a power of two and one, a multiple of sixteen."""

FAMILIES = ("llama", "gpt_neox")


@dataclass
class Step:
    """What one step asked of the GPU."""

    step: int
    launches: Counter[str]
    n_new_variants: int
    faults: list[str]


@dataclass
class Seen:
    """What a run asked of the GPU.

    Attributes:
        code: exit code of the command line.
        steps: of the first start, and then of those after a heal.
        evaluation_faults: what evaluations waited for.
        output: what the run printed.
    """

    driver: FakeDriver
    code: int = -1
    steps: list[Step] = field(default_factory=list)
    evaluation_faults: list[str] = field(default_factory=list)
    output: str = ""

    @property
    def late(self) -> list[Variant]:
        """Variants that appeared after the first step; none of a run that collapses, which is another matter."""
        return [] if self.collapses else self.driver.variants[self.n_after_first_step :]

    n_after_first_step: int = 0
    collapses: bool = False

    @property
    def faults(self) -> list[str]:
        return sorted({fault for step in self.steps for fault in step.faults} | set(self.evaluation_faults))


def write_model(folder: Path, family: str, **changes: Any) -> Path:
    """A random two-layer model whose tokenizer gives one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes: dict[str, Any] = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    words = Tokenizer(models.WordLevel({"</s>": 0, **{f"w{i}": i for i in range(1, 128)}}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    model.half().save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    return folder


def write_rows(path: Path, lengths: Sequence[int]) -> Path:
    """Rows of text, each of so many tokens, the end of text included."""
    rows = [{"text": " ".join(f"w{1 + (i * 7 + n) % 100}" for i in range(n - 1))} for n in lengths]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Run:
    """A run to make.

    Attributes:
        lengths, eval_lengths: tokens of each row.
        bad_row: index of a row whose loss is NaN.
        watch: whether to look for waits, which makes a step many times slower.
        verbs: what to run on the finished run, with its arguments.
        overrides: configuration keys, as on the command line.
    """

    family: str
    n_steps: int
    lengths: Sequence[int] = LENGTHS
    eval_lengths: Sequence[int] = (5, 33)
    bad_row: int | None = None
    watch: bool = True
    verbs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)


def settings(folder: Path, run: Run) -> list[str]:
    """Arguments of a run with everything on: fp16, dropout, accumulation, evaluation, statistics of every kind."""
    values = {
        "data.train": folder / "train.jsonl",
        "data.eval": folder / "eval.jsonl",
        "data.format": "text",
        "data.cutoff_len": 2048,
        "data.cache": "false",
        "lora.r": 4,
        "lora.lora_dropout": 0.05,
        "lora.target_modules": "all-linear",
        "training.output_dir": folder / "run",
        "training.max_steps": run.n_steps,
        "training.per_device_train_batch_size": 1,
        "training.per_device_eval_batch_size": 2,
        "training.gradient_accumulation_steps": 2,
        "training.optim": "adamw_torch_fused",
        "training.fp16": "true",
        "training.eval_strategy": "steps",
        "training.eval_steps": 2,
        "training.save_strategy": "no",
        "training.logging_steps": 1,
        "instrument.histogram_every": 2,
        "instrument.probe_every": 3,
        "instrument.rows_every": 4,
        "precision.on_collapse": "stop",
        **run.overrides,
    }
    return [f"{key}={value}" for key, value in values.items()]


def train(folder: Path, chip: int, run: Run) -> Seen:
    """Runs `lora-train` in this process on a GPU that is not there; `folder` is made where it is not there."""
    from lora_train.trainer.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / run.family).exists():
        write_model(folder / run.family, run.family)
    write_rows(folder / "train.jsonl", run.lengths)
    write_rows(folder / "eval.jsonl", run.eval_lengths)
    values = settings(folder, run)
    (folder / "config.yaml").write_text(f"model: {{name_or_path: {json.dumps(str(folder / run.family))}}}\n")
    arguments = ["--config", str(folder / "config.yaml"), *values]
    output = StringIO()
    with fake_cuda(chip) as driver, ExitStack() as stack:
        seen = Seen(driver, collapses=run.bad_row is not None)
        stack.enter_context(zeros_in_fresh_memory())
        stack.enter_context(_steps_are_seen(seen, run.watch, run.bad_row))
        stack.enter_context(redirect_stdout(output))
        try:
            seen.code = main(arguments)
            for verb, given in run.verbs.items():
                seen.code = seen.code or main([verb, str(folder / "run"), *given])
        finally:
            seen.output = output.getvalue()
    return seen


@contextmanager
def _steps_are_seen(seen: Seen, watch: bool, bad_row: int | None) -> Iterator[None]:
    from lora_train.trainer.loop import train as loop
    from lora_train.trainer.model.loss import SupervisedLoss

    run_step, evaluate, loss_of = loop.train_step, loop.evaluate, SupervisedLoss.__call__

    def train_step(components: Any, rows: Any) -> torch.Tensor:
        driver = seen.driver
        before, n_variants = driver.launches.copy(), len(driver.variants)
        with watched_or_not(watch) as waits:
            row = run_step(components, rows)
        seen.steps.append(Step(rows.step, driver.launches - before, len(driver.variants) - n_variants, waits.faults))
        seen.n_after_first_step = seen.n_after_first_step or len(driver.variants)
        return row

    def loss(self: SupervisedLoss, batch: Any) -> Any:
        total, n_correct = loss_of(self, batch)
        return (total + float("nan") if bad_row in batch.rows else total), n_correct

    def evaluated(*arguments: Any) -> Any:
        with watched_or_not(watch) as waits:
            result = evaluate(*arguments)
        # it ends by reading its sums: that one is wanted
        seen.evaluation_faults += [fault for fault in waits.faults if "tolist" not in fault]
        return result

    with ExitStack() as stack:
        stack.enter_context(patch.object(loop, "train_step", train_step))
        stack.enter_context(patch.object(loop, "evaluate", evaluated))
        stack.enter_context(patch.object(SupervisedLoss, "__call__", loss))
        yield


@contextmanager
def watched_or_not(watch: bool) -> Iterator[Waits]:
    if not watch:
        yield Waits()
        return
    with watched() as waits:
        yield waits


@contextmanager
def zeros_in_fresh_memory() -> Iterator[None]:
    """What no kernel wrote is then always the same."""

    def zeroed(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            out = make(*args, **kwargs)
            return out.zero_() if out.device.type == "cpu" else out

        return made

    with ExitStack() as stack:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            stack.enter_context(patch.object(owner, name, zeroed(getattr(owner, name))))
        yield
