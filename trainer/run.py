"""One run from a validated configuration to the final adapter: everything around the loop."""

from __future__ import annotations

import json
import re
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from peft import PeftModel

from ..instrument.compact import compact as compact_stats
from ..instrument.loss_scale import INITIAL_SCALE, LossScale
from ..instrument.messages import say
from ..instrument.patch import Patched, patch
from ..instrument.recorder import Recorder
from ..instrument.store import MetricsLog, StatsWriter, write_sites
from .batches import Plan
from .checkpoint import STATE, NotFinite, Progress, load_checkpoint, save_adapter, set_aside_after
from .checkpoint import commit as commit_folder
from .config import Config
from .console import Console, compact, duration
from .data import Dataset, load_examples, split_held_out
from .engine import Engine
from .errors import UserError, problem
from .loop import Parts, Stop, train
from .loss import SupervisedLoss
from .model import add_lora, autocast, load_base, load_tokenizer, pad_token_id, trainable
from .model_card import model_card
from .optim import Optimizer, lr_table
from .run_folder import find_checkpoint, fresh_folder, write_config, write_env
from .run_log import RunLog


def run(config: Config, resume: str | None) -> int:
    """Trains and returns the exit code: 0 done, 130/143 interrupted with a checkpoint written.

    Raises:
        UserError: data, model or checkpoint cannot be used; nothing was overwritten.
    """
    stop = Stop()
    if config.training.max_hours is not None:
        stop.deadline = time.monotonic() + 3600 * config.training.max_hours
    transformers.logging.set_verbosity_error()
    engine = Engine()
    console = Console(silent=not engine.is_main)
    checkpoint = find_checkpoint(resume, config.training.output_dir) if resume else None

    for key in config.without_effect():
        console.warn(say("config.no_effect", key=key))
    tokenizer = load_tokenizer(config)
    train_data, eval_data = load_data(config, tokenizer, console)
    parts, rates = build(config, engine, train_data, eval_data, pad_token_id(tokenizer), console)
    progress = Progress()
    if checkpoint is not None:
        changed = changed_settings(checkpoint, config)
        progress = load_checkpoint(checkpoint, parts.model, parts.optimizer, parts.loss_scale)
        if progress.step >= parts.n_steps and (checkpoint.parent / "adapter").is_dir():
            console.line(say("resume.complete", folder=checkpoint.parent, step=progress.step, total=parts.n_steps))
            return 0
        if changed:
            console.warn(say("resume.changed", keys=", ".join(changed)))
        if engine.is_main:
            set_aside_after(checkpoint.parent, progress.step, progress.start)
        progress.start += 1
    run_dir = checkpoint.parent if checkpoint else fresh_folder(config.training.output_dir)
    metrics = open_folder(run_dir, parts, progress) if engine.is_main else None
    stats = open_stats(run_dir, parts, progress) if engine.is_main else None
    engine.barrier()
    greet(parts, progress, run_dir, checkpoint, resume, console)

    stop.listen()
    log = RunLog(
        metrics, console, config, progress, parts.n_steps, parts.plan.steps_per_epoch, rates, engine.device, stats
    )
    console.begin(progress.step, parts.n_steps)
    try:
        with parts.recorder.active() if parts.recorder else nullcontext():
            train(parts, progress, run_dir, log, console, stop)
    finally:
        console.end()
        if stats is not None:
            stats.close()
    code = finish(parts, progress, run_dir, log, console, stop)
    engine.close()
    return code


# What a resumed run may change without becoming another run.
FREE_TO_CHANGE = re.compile(
    r"training\.(output_dir|max_steps|max_hours|num_train_epochs|(logging|eval|save)_.*)|instrument\..*"
)


def changed_settings(checkpoint: Path, config: Config) -> list[str]:
    """Keys whose values differ from the checkpoint's and change what is computed.

    Raises:
        UserError: the optimizer differs: its state cannot be carried over.
    """
    try:
        before = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return []  # load_checkpoint says what is wrong with the folder
    now = config.model_dump()
    keys = [f"{section}.{key}" for section, values in now.items() for key in values]
    changed = [key for key in keys if _at(before, key) != _at(now, key) and not FREE_TO_CHANGE.fullmatch(key)]
    if "training.optim" in changed:
        raise UserError(problem("resume.optim", before=_at(before, "training.optim"), now=config.training.optim))
    return changed


def _at(settings: dict, key: str) -> object:
    section, _, name = key.partition(".")
    return settings.get(section, {}).get(name)


def load_data(config: Config, tokenizer, console: Console) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows, tokenized; says what was dropped or cut."""
    data, seed = config.data, config.training.seed
    train_data = load_examples(data.train, data, tokenizer, data.limit)
    evaluates = config.training.eval_strategy != "no"
    eval_data = load_examples(data.eval, data, tokenizer) if data.eval is not None and evaluates else None
    if not evaluates and (data.eval is not None or data.eval_fraction > 0):
        console.warn(say("data.never_evaluated"))
    for dataset in (train_data, eval_data):
        if dataset is not None and dataset.dropped:
            rows = ", ".join(map(str, dataset.dropped[:5])) + (" ..." if len(dataset.dropped) > 5 else "")
            console.warn(say("data.dropped", source=dataset.source, count=len(dataset.dropped), rows=rows))
        if dataset is not None and dataset.truncated:
            cutoff = data.cutoff_len
            console.warn(say("data.truncated", source=dataset.source, count=dataset.truncated, cutoff=cutoff))
    if data.eval_fraction > 0 and evaluates:
        train_data, eval_data = split_held_out(train_data, data.eval_fraction, seed)
    return train_data, eval_data


def build(
    config: Config, engine: Engine, train_data: Dataset, eval_data: Dataset | None, pad: int, console: Console
) -> tuple[Parts, list[float]]:
    """Model, adapter, optimizer and order of a run, and its table of learning rates."""
    training = config.training
    seed = training.seed if training.data_seed is None else training.data_seed
    sizes = (training.per_device_train_batch_size, training.gradient_accumulation_steps)
    plan = Plan(train_data, *sizes, seed, engine.world_size)
    n_steps = plan.n_steps(training.num_train_epochs, training.max_steps)
    model = add_lora(load_base(config, engine.device), config)
    engine.same_everywhere(list(trainable(model).values()))
    with autocast(config, engine.device):
        patched = patch(model, lambda: run_once(model))
        loss = SupervisedLoss(model, getattr(torch, config.compute_dtype))
    for reason in sorted({reason for _, _, reason in patched.unfused}):
        names = [name for name, _, why in patched.unfused if why == reason]
        listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        console.warn(say("patch.unfused", count=len(names), modules=listed, reason=say(f"patch.{reason}")))
    if warning := loss.warning():
        console.warn(warning)
    rates = lr_table(training, n_steps)
    optimizer = Optimizer(trainable(model), training, rates)
    scale = loss_scale_of(config, engine.device)
    recorder = make_recorder(config, engine, model, patched) if config.instrument.enabled else None
    return Parts(config, engine, model, loss, optimizer, scale, plan, pad, n_steps, eval_data, recorder), rates


def run_once(model: PeftModel) -> None:
    """One forward on four tokens, in evaluation mode: shows in which order modules run and what they share."""
    training = model.training
    model.eval()
    model(input_ids=torch.arange(4, device=model.device)[None], use_cache=False)
    model.train(training)


def make_recorder(config: Config, engine: Engine, model: PeftModel, patched: Patched) -> Recorder:
    """The recorder that the configuration asks for.

    Raises:
        UserError: instrument.sites matches nothing.
    """
    sites = config.instrument.sites
    with autocast(config, engine.device):
        recorder = Recorder(
            patched,
            list(trainable(model).values()),
            lambda: run_once(model),
            engine.device,
            n_micro_batches=config.training.gradient_accumulation_steps,
            patterns=["*"] if sites == "all" else sites,
            histogram_every=config.instrument.histogram_every,
            gather=engine.gather if engine.world_size > 1 else None,
        )
    if not recorder.sites:
        raise UserError(problem("instrument.no_sites", patterns=sites))
    return recorder


def loss_scale_of(config: Config, device: torch.device) -> LossScale:
    """The loss scale the configuration asks for: 1 without fp16."""
    precision = config.precision
    if not config.training.fp16:
        return LossScale(device, initial=1.0, dynamic=False)
    if precision.loss_scale == "dynamic":
        return LossScale(
            device, initial=max(INITIAL_SCALE, precision.min_loss_scale), min_scale=precision.min_loss_scale
        )
    return LossScale(device, initial=float(precision.loss_scale), dynamic=False)


def open_folder(run_dir: Path, parts: Parts, progress: Progress) -> MetricsLog:
    """Makes the run folder and writes down what the run is made of."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_config(run_dir, parts.config)
        base = parts.model.get_base_model()
        facts = {
            "start": progress.start,
            "device": str(parts.engine.device),
            "processes": parts.engine.world_size,
            "model": parts.config.model.name_or_path,
            "revision": getattr(base.config, "_commit_hash", None) or parts.config.model.revision,
            "data_fingerprint": parts.plan.fingerprint(),
        }
        write_env(run_dir, facts)
        return MetricsLog(run_dir, progress.start)
    except OSError as error:
        raise UserError(problem("run.cannot_write", folder=run_dir, what=error.strerror)) from error


def open_stats(run_dir: Path, parts: Parts, progress: Progress) -> StatsWriter | None:
    """Writes sites.json and opens this start's stream of statistics."""
    if parts.recorder is None:
        return None
    write_sites(run_dir, parts.recorder.sites)
    return StatsWriter(run_dir, progress.start, len(parts.recorder.sites))


def greet(
    parts: Parts,
    progress: Progress,
    run_dir: Path,
    checkpoint: Path | None,
    resume: str | None,
    console: Console,
) -> None:
    """The banner: what is trained on what, where it goes."""
    config, plan = parts.config, parts.plan
    n_trained, n_all = parts.model.get_nb_trainable_parameters()
    quantized = config.quantization.bnb_4bit_quant_type if config.quantization.load_in_4bit else ""
    console.line(
        say(
            "banner.model",
            model=config.model.name_or_path,
            storage=quantized or config.storage_dtype,
            compute=config.compute_dtype,
            device=parts.engine.device,
            processes=parts.engine.world_size,
        )
    )
    console.line(say("banner.lora", r=config.lora.r, trained=n_trained, all=n_all, share=100 * n_trained / n_all))
    supervised = sum(example.n_supervised for example in plan.dataset.examples)
    tokens = sum(len(example.input_ids) for example in plan.dataset.examples)
    console.line(
        say(
            "banner.data",
            source=plan.dataset.source,
            rows=len(plan.dataset.examples),
            eval_rows=len(parts.eval_data.examples) if parts.eval_data else 0,
            share=100 * supervised / tokens,
            steps=parts.n_steps,
            per_step=plan.rows_per_step,
        )
    )
    if parts.optimizer.waits:
        console.line(say("banner.optimizer_waits", optim=config.training.optim))
    if resume is not None and checkpoint is None:
        console.line(say("banner.nothing_to_resume", output_dir=config.training.output_dir))
    elif checkpoint is not None:
        console.line(say("banner.resume", checkpoint=checkpoint, step=progress.step))
    elif run_dir != Path(config.training.output_dir).expanduser():
        console.line(say("banner.moved", taken=config.training.output_dir, folder=run_dir))
    console.line(say("banner.folder", folder=run_dir))


def finish(parts: Parts, progress: Progress, run_dir: Path, log: RunLog, console: Console, stop: Stop) -> int:
    """Writes the final adapter of a complete run, says where things are, and gives the exit code."""
    complete = progress.step >= parts.n_steps
    if parts.engine.is_main:
        if complete:
            log.summary(progress.step * parts.plan.rows_per_step, progress.step)
            if parts.recorder is not None:
                compact_stats(run_dir)
                if parts.recorder.dropped:
                    console.warn(say("instrument.dropped", count=parts.recorder.dropped))
            try:
                write_adapter(parts.model, run_dir / "adapter", parts.config, progress.final_loss)
            except NotFinite as error:
                console.warn(say("save.not_finite", step=progress.step, name=error))
                return 1
            seconds = duration(progress.train_seconds)
            console.line(say("end.done", steps=progress.step, time=seconds, loss=compact(progress.final_loss)))
            console.line(say("end.adapter", folder=run_dir / "adapter"))
        else:
            console.line(say("end.interrupted", step=progress.step, total=parts.n_steps, folder=run_dir))
    parts.engine.barrier()
    return 0 if complete or not stop.signal else 128 + stop.signal


def write_adapter(model: PeftModel, folder: Path, config: Config, final_loss: float | None) -> None:
    """The adapter with its card, whole or not at all."""
    partial = folder.with_name(folder.name + ".tmp")
    save_adapter(model, partial)
    (partial / "README.md").write_text(model_card(config, final_loss), encoding="utf-8")
    commit_folder(partial, folder)
