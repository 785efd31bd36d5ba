"""`lora-train --config FILE --dry-run`: what a run would read, need and compute. Trains nothing, writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import transformers
from rich.cells import cell_len

from ...instrument.constants import GIB, MIB
from ...instrument.judge.explain.finding import clock
from ...instrument.messages import say
from ...instrument.record.once import in_mode
from ..checks.tips import FORWARD, Outlook, tips
from ..collapse.rehearse import rehearse
from ..collapse.remedy import start_scale
from ..config.schema import Config
from ..config.settings import with_settings
from ..console import Console
from ..data.batches import StepRows
from ..data.examples import Example
from ..data.load import load_data, with_format
from ..errors import first_line
from ..loop.components import Components, build, order_of
from ..loop.engine import Engine
from ..model.classify import own_names
from ..model.fit import require_fit
from ..model.load import load_tokenizer, pad_token_id
from . import headroom
from .fake_model import FakeModel, has_weights, make_fake
from .memory import USABLE, Memory, Shape, available, largest_batch, longest, predict, shape_of
from .outlook import outlook_of
from .preview import show_batches, show_lengths

LABEL_WIDTH = 34


def dry_run(config: Config) -> int:
    """Prints and returns the exit code: 0, or 3 if the forward and backward are not finite.

    Raises:
        UserError: data or model cannot be used.
    """
    transformers.logging.set_verbosity_error()
    engine = Engine()
    console = Console(silent=not engine.is_main)
    tokenizer = load_tokenizer(config)
    train_data, eval_data = load_data(config, tokenizer, console, own_names(config))
    n_rows = require_fit(config, tokenizer, (train_data, eval_data), console)
    config = with_format(config, train_data)
    plan = order_of(config, train_data, engine.world_size)
    show_batches(plan, engine.rank, tokenizer, console)
    show_lengths(config, plan, eval_data, console)
    outlook = outlook_of(config, plan, eval_data, engine.device)
    for tip in tips(config, outlook):
        console.warn(tip)
    units = [unit for indices in plan.units(0) if (unit := plan.kept(train_data.examples[i] for i in indices))]
    fitting = show_memory(config, engine.device, units, console)
    if not has_weights(config):
        console.line(say("dry_run.no_weights", model=config.model.name_or_path))
        return 0
    n_units = min(config.training.per_device_train_batch_size, fitting, len(units))
    if n_units == 0:
        console.warn(say("dry_run.nothing_fits"))
        return 0
    components = build(config, engine, train_data, eval_data, pad_token_id(tokenizer, n_rows), console)
    start_scale(components)
    examples = longest(units, n_units)
    measured = headroom.measure(components, examples)
    if measured.phase is None:
        show_hours(components, examples, outlook, console)
    return headroom.show(measured, examples, console)


def show_hours(components: Components, examples: Sequence[Example], outlook: Outlook, console: Console) -> None:
    """How long the whole run would take."""
    found = predicted_hours(components, examples, outlook)
    times = {name: clock(3600 * found[name]) for name in ("hours", "evals")}
    console.line(say("dry_run.hours", **found | times))


def predicted_hours(components: Components, examples: Sequence[Example], outlook: Outlook) -> dict[str, float]:
    """How long the whole run would take, by one forward and backward of these rows, the second of its kind.

    The optimizer's own time is not in it: with LoRA it is small. An evaluation is a forward pass alone.

    Returns:
        `hours` in all and `evals` of them for evaluations, of `steps`; `seconds` of the rows' `tokens`.
    """
    n_tokens = sum(len(example.input_ids) for example in examples)
    rows = StepRows(1, [], max(1, sum(example.n_supervised for example in examples)))
    with in_mode(components.model, training=True):
        started = time.perf_counter()
        rehearse(components, 1, rows=rows.alone(components.engine.rank, 0, examples))
        seconds = time.perf_counter() - started
    n_steps, per_epoch = outlook.n_steps or 0, outlook.steps_per_epoch or 1
    processes = components.engine.world_size
    training = (outlook.train_tokens or 0) * n_steps / per_epoch / processes
    evaluating = FORWARD * (outlook.eval_tokens or 0) * (outlook.n_evals or 0) / processes
    hours = seconds / n_tokens / 3600
    values = {"hours": hours * (training + evaluating), "evals": hours * evaluating}
    return {"steps": n_steps, "tokens": n_tokens, "seconds": seconds, **values}


def show_memory(config: Config, device: torch.device, units: Sequence[Sequence[Example]], console: Console) -> int:
    """Parameter counts, memory by part, and the largest batch.

    Args:
        units: the rows there are, each alone or in its bin.

    Returns:
        units in the largest micro-batch that fits; all of them where that cannot be predicted.
    """
    try:
        fake = make_fake(config, device)
        shape = shape_of(longest(units, min(config.training.per_device_train_batch_size, len(units))))
        memory = predict(fake, shape)
    except RuntimeError as error:  # the model looks at the values of its tensors, which a fake has not
        console.warn(say("dry_run.no_prediction", what=first_line(error)))
        return len(units)
    share = 100 * fake.n_trained / fake.n_all
    console.line(say("dry_run.parameters", trained=fake.n_trained, all=fake.n_all, share=share))
    free = available(device)
    show_parts(memory, fake, shape, free, console)
    return show_largest(fake, shape, units, int(USABLE * free), console)


def show_parts(memory: Memory, fake: FakeModel, shape: Shape, free: int, console: Console) -> None:
    """One line for each thing that takes memory."""
    console.line(say("dry_run.memory", device=fake.device, rows=shape.n_rows, length=shape.length))
    storages = ", ".join(f"{kind} {size(n)}" for kind, n in memory.weights.items())
    optim = fake.config.training.optim
    pageable = say("dry_run.pageable", optim=optim) if optim.startswith("paged_") else optim
    step = memory.step
    lines = [
        (say("dry_run.weights"), sum(memory.weights.values()), storages),
        (say("dry_run.lora"), memory.lora, "float32"),
        (say("dry_run.gradients"), memory.gradients, "float32"),
        (say("dry_run.optimizer"), memory.optimizer, pageable),
        (say("dry_run.copies"), memory.copies, ""),
        (say("dry_run.activations"), step.kept, ""),
        (say("dry_run.temporaries"), step.peak + step.room - step.kept, say("dry_run.logits", size=size(step.loss))),
        (say("dry_run.overhead"), memory.overhead, ""),
        (say("dry_run.total"), memory.total, say("dry_run.free", size=size(free))),
    ]
    for label, n_bytes, note in lines:
        if n_bytes or note:
            console.line(f"  {padded(label)} {size(n_bytes):>10}  {note}".rstrip())


def show_largest(fake: FakeModel, shape: Shape, units: Sequence[Sequence[Example]], free: int, console: Console) -> int:
    """The largest batch that fits as the run is configured, and with gradient checkpointing the other way round."""
    training, packed = fake.config.training, fake.config.data.packing
    enabled, wanted = training.gradient_checkpointing, min(training.per_device_train_batch_size, len(units))
    fitting = largest_batch(_needed(fake, units), free, len(units))
    other = make_fake(with_settings(fake.config, {"training.gradient_checkpointing": not enabled}), fake.device)
    otherwise = largest_batch(_needed(other, units), free, len(units))
    length = sum(shape_of(longest(units, 1)).lengths)
    unit = say("unit.bins" if packed else "unit.rows")
    console.line(say("dry_run.largest", size=fitting, length=length, now=wanted, units=len(units), unit=unit))
    if enabled:
        console.line(say("dry_run.without_checkpointing", size=otherwise))
    elif otherwise > fitting:
        console.line(say("dry_run.checkpointing_more", size=otherwise))
    else:
        console.line(say("dry_run.checkpointing_same"))
    if wanted > fitting:
        console.warn(say("dry_run.too_large", size=wanted))
    return fitting


def _needed(fake: FakeModel, units: Sequence[Sequence[Example]]) -> Callable[[int], int]:
    return lambda n_units: predict(fake, shape_of(longest(units, n_units))).total


def size(n_bytes: int) -> str:
    """Bytes in GiB, or MiB where that is less than one."""
    return f"{n_bytes / GIB:,.2f} GiB" if n_bytes >= GIB else f"{n_bytes / MIB:,.1f} MiB"


def padded(label: str) -> str:
    """A label in its column; Korean letters take two places."""
    return label + " " * max(0, LABEL_WIDTH - cell_len(label))
