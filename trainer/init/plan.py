"""Which settings fit into a GPU, by the memory prediction of --dry-run on a model without weights.

Tried in this order, each with the largest micro-batch of 8, 4, 2 or 1 rows of cutoff_len tokens, until one fits:

    16-bit weights;  16-bit weights, gradient checkpointing;  4-bit weights, gradient checkpointing;  half the length

The model's own config is read where it lies on disk or in the hub's cache. Else a LLaMA of the size that its name says
stands for it: nothing is downloaded.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import LlamaConfig

from ...instrument.constants import GIB, MIB
from ...instrument.messages import say
from ..config.schema import Config
from ..dry_run.fake_model import FakeModel, make_fake
from ..dry_run.memory import USABLE, Shape, optimizer_bytes, run_step
from ..errors import UserError
from ..model.load import resolve
from .machines import Machine

# Billions of parameters -> hidden_size, layers, intermediate_size, vocab_size of a published model of about that size.
SHAPES = {
    0.2: (576, 30, 1536, 49152),
    0.7: (896, 24, 4864, 151936),
    1.9: (2048, 24, 8192, 128256),
    4.5: (3072, 28, 8192, 128256),
    9.5: (4096, 32, 14336, 128256),
    16.0: (5120, 40, 13824, 128256),
    36.0: (5120, 64, 27648, 152064),
    80.0: (8192, 80, 28672, 128256),
}
"""Up to so many billions -> the shape."""
ROWS, LENGTH, EFFECTIVE = (8, 4, 2, 1), 1024, 16
# CUDA's context and cuBLAS's workspace, which no tensor shows.
CONTEXT = 500 * MIB
UNKNOWN = 9.5


@dataclass(frozen=True)
class Plan:
    """Settings.

    Attributes:
        four_bit, checkpointing: what is done for memory.
        length: data.cutoff_len.
        rows: of a micro-batch.
        precision: fp16, bf16 or none.
        needed: bytes, predicted; None: it could not be predicted.
        billions: the size that was taken from the name; None: the model's own config was there.
    """

    four_bit: bool = False
    checkpointing: bool = False
    length: int = LENGTH
    rows: int = 1
    precision: str = "none"
    needed: int | None = None
    billions: float | None = None
    fits: bool = True

    @property
    def accumulation(self) -> int:
        """Micro-batches in a step, so that it has EFFECTIVE rows."""
        return max(1, EFFECTIVE // self.rows)

    def words(self, machine: Machine) -> str:
        """What was found, and how well it is known."""
        if self.needed is None:
            return say("init.not_predicted")
        values = {"gib": self.needed / GIB, "free": machine.gib, "rows": self.rows, "length": self.length}
        if machine.gib is None:
            return say("init.cpu", **values)
        lines = [say("init.fits" if self.fits else "init.too_large", **values)]
        if self.billions is not None:
            lines.append(say("init.by_name", billions=self.billions))
        return "\n".join(lines)


def plan_for(model: str, machine: Machine) -> Plan:
    """The first settings that fit; the smallest ones if none do."""
    precision = "none" if machine.gib is None else "fp16" if machine.bf16 is False else "bf16"
    with tempfile.TemporaryDirectory() as folder:
        place, billions = place_of(model, Path(folder))
        best = Plan(precision=precision, billions=billions)
        for candidate in _candidates(best, machine):
            try:
                needed = _needed(candidate, place)
            except (RuntimeError, UserError):  # the model looks at values, or its config cannot be read
                return replace(best, four_bit=machine.gib is not None, checkpointing=machine.gib is not None)
            room = None if machine.gib is None else int(USABLE * machine.gib * GIB)
            rows = next((n for n in ROWS if room is None or needed(n) <= room), 1)
            best = replace(candidate, rows=rows, needed=needed(rows))
            if room is None or needed(rows) <= room:
                return best
        return replace(best, fits=False)


def place_of(model: str, folder: Path) -> tuple[str, float | None]:
    """Where a config of this model lies, and the billions of parameters of what stands for it."""
    if model.endswith(".gguf"):
        billions = size_in_name(Path(model).stem)
    else:
        try:
            from transformers import AutoConfig

            AutoConfig.from_pretrained(resolve(model), local_files_only=True, trust_remote_code=False)
            return model, None
        except Exception:  # not on disk, or of every kind that a broken config raises
            billions = size_in_name(model)
    billions = billions or UNKNOWN
    hidden, layers, inner, vocabulary = SHAPES[min((size for size in SHAPES if size >= billions), default=max(SHAPES))]
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner, vocab_size=vocabulary,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 512), head_dim=64,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return str(folder), billions


def size_in_name(name: str) -> float | None:
    """Billions of parameters: 12.8 of polyglot-ko-12.8b, 0.135 of SmolLM2-135M."""
    found = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z0-9])", name.replace("_", "-"))
    sizes = [float(number) / (1000 if unit in "mM" else 1) for number, unit in found]
    return max(sizes, default=None)


def _candidates(plan: Plan, machine: Machine) -> Iterator[Plan]:
    if machine.gib is None:
        yield plan
        return
    for length in (LENGTH, LENGTH // 2):
        if length == LENGTH:
            yield replace(plan, length=length)
            yield replace(plan, length=length, checkpointing=True)
        yield replace(plan, length=length, checkpointing=True, four_bit=True)


def _needed(plan: Plan, place: str) -> Callable[[int], int]:
    """Bytes for so many rows, by those of one and two; the CPU's operators stand for the GPU's.

    Raises:
        RuntimeError: the model reads values of its tensors.
    """
    config = Config.model_validate(
        {
            "model": {"name_or_path": place},
            "data": {"train": "rows", "format": "text"},
            "quantization": {"load_in_4bit": plan.four_bit, "bnb_4bit_use_double_quant": plan.four_bit},
            "training": {
                "fp16": plan.precision == "fp16",
                "bf16": plan.precision == "bf16",
                "gradient_checkpointing": plan.checkpointing,
            },
        }
    )
    fake = make_fake(config, torch.device("cpu"))
    held = sum(fake.weights.values()) + 8 * fake.n_trained + optimizer_bytes(config.training.optim, fake.trained)

    one, two = (held + CONTEXT + _step(fake, plan.length, rows) for rows in (1, 2))
    return lambda rows: one + (rows - 1) * (two - one)


def _step(fake: FakeModel, length: int, rows: int) -> int:
    step = run_step(fake, Shape((length,) * rows, rows * length))
    return step.peak + step.room
