"""One run from a validated configuration to the final adapter: everything around the loop."""

from __future__ import annotations

import gc
import json
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import transformers
from peft import PeftModel

from ..instrument.compact import compact as compact_stats
from ..instrument.messages import say
from ..instrument.store import MetricsLog, StatsWriter, write_sites
from .checkpoint import STATE, NotFinite, Progress, load_checkpoint, save_adapter, set_aside_after
from .checkpoint import commit as commit_folder
from .collapse import Decision, collapse
from .config import Config
from .console import Console, compact, duration
from .data import Dataset, load_examples, split_held_out
from .engine import Engine
from .errors import UserError, problem
from .healthy import Healthy
from .loop import Stop, train
from .model import load_tokenizer, pad_token_id
from .model_card import model_card
from .parts import Parts, build
from .remedy import start_scale
from .run_folder import find_checkpoint, fresh_folder, write_config, write_env
from .run_log import RunLog
from .settings import with_settings


def run(config: Config, resume: str | None) -> int:
    """Trains and returns the exit code: 0 done, 3 stopped by a collapse, 130/143 interrupted with a checkpoint written.

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
    if checkpoint is not None:
        config = with_heals(config, checkpoint)
    tokenizer = load_tokenizer(config)
    data = load_data(config, tokenizer, console)
    config = with_format(config, data[0])
    source = Source(data[0], data[1], pad_token_id(tokenizer), resume)
    outcome = start(config, checkpoint, source, engine, console, stop)
    while isinstance(outcome, Decision):  # a healed run goes on as a resumed one would
        gc.collect()
        outcome = start(outcome.config, outcome.checkpoint, source, engine, console, stop, outcome.checkpoint.parent)
    engine.close()
    return outcome


@dataclass(frozen=True)
class Source:
    """What every start of a run has in common: the rows, the padding, and what --resume said."""

    train_data: Dataset
    eval_data: Dataset | None
    pad_token_id: int
    resume: str | None


def start(
    config: Config,
    checkpoint: Path | None,
    source: Source,
    engine: Engine,
    console: Console,
    stop: Stop,
    healing: Path | None = None,
) -> int | Decision:
    """Builds everything and trains from the checkpoint on, or from the beginning.

    Args:
        healing: the run folder, where this start is a run going on after a collapse.

    Returns:
        the exit code, or how to go on.
    """
    parts, rates = build(config, engine, source.train_data, source.eval_data, source.pad_token_id, console)
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
    else:
        start_scale(parts)
    # the main process's answer: another may look when the folder has just been made
    run_dir = engine.gather_objects(checkpoint.parent if checkpoint else fresh_folder(config.training.output_dir))[0]
    metrics = open_folder(run_dir, parts, progress) if engine.is_main else None
    stats = open_stats(run_dir, parts, progress) if engine.is_main else None
    engine.barrier()
    if healing is None:
        greet(parts, progress, run_dir, checkpoint, source.resume, console)
        stop.listen()
    sites = parts.recorder.sites if parts.recorder else []
    n_steps, per_epoch = parts.n_steps, parts.plan.steps_per_epoch
    log = RunLog(metrics, console, config, progress, n_steps, per_epoch, rates, engine.device, stats, sites)
    healthy = Healthy(parts.model, parts.optimizer, parts.loss_scale)
    healthy.keep(progress)
    console.begin(progress.step, parts.n_steps)
    try:
        with parts.recorder.active() if parts.recorder else nullcontext():
            trouble = train(parts, progress, healthy, run_dir, log, console, stop)
    finally:
        console.end()
        if stats is not None:
            stats.close()
    if trouble is not None:
        return collapse(parts, progress, trouble, healthy, run_dir, console)
    return finish(parts, progress, run_dir, log, console, stop)


def with_heals(config: Config, checkpoint: Path) -> Config:
    """The configuration with what healed the run before, where the user has not set the key since."""
    try:
        heals = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("heals", [])
    except (OSError, ValueError):
        return config  # load_checkpoint says what is wrong with the folder
    for heal in heals:
        now = config.model_dump()
        kept = {
            key: value
            for key, value in heal["settings"].items()
            if isinstance(value, list) or _at(now, key) == heal["before"][key]
        }
        config = with_settings(config, kept)
    return config


# What a resumed run may change without becoming another run.
FREE_TO_CHANGE = re.compile(
    r"training\.(output_dir|max_steps|max_hours|num_train_epochs|(logging|eval|save)_.*)|data\.(cache|eval_limit)|instrument\..*"
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
    """Training and evaluation rows, tokenized; says what was detected, left out, dropped or cut."""
    data, seed = config.data, config.training.seed
    train_data = load_examples(data.train, data, tokenizer, data.limit)
    if data.format == "auto" and data.prompt_template is None:
        console.line(say("data.detected", source=data.train, format=train_data.format))
    evaluates = config.training.eval_strategy != "no"
    eval_data = None
    if data.eval is not None and evaluates:
        same = with_format(config, train_data).data  # evaluated as it is trained, whatever other fields there are
        eval_data = load_examples(data.eval, same, tokenizer, data.eval_limit)
    if not evaluates and (data.eval is not None or data.eval_fraction > 0):
        console.warn(say("data.never_evaluated"))
    for dataset in (train_data, eval_data):
        if dataset is not None:
            report_rows(dataset, data.cutoff_len, console)
    if data.eval_fraction > 0 and evaluates:
        train_data, eval_data = split_held_out(train_data, data.eval_fraction, seed)
        eval_data = replace(eval_data, examples=eval_data.examples[: data.eval_limit])
    return train_data, eval_data


def with_format(config: Config, dataset: Dataset) -> Config:
    """The configuration with the format that was detected, which is what is recorded and resumed."""
    if config.data.format != "auto" or config.data.prompt_template is not None:
        return config
    return with_settings(config, {"data.format": dataset.format})


def report_rows(dataset: Dataset, cutoff_len: int, console: Console) -> None:
    """Says which rows of a source are not trained on as they are."""
    if dataset.n_skipped:
        console.warn(say("data.skipped", source=dataset.source, count=dataset.n_skipped))
        for fault in dataset.skipped:
            console.line(say("data.skipped_row", fault=fault))
    if dataset.dropped:
        rows = ", ".join(map(str, dataset.dropped[:5])) + (" ..." if len(dataset.dropped) > 5 else "")
        console.warn(say("data.dropped", source=dataset.source, count=len(dataset.dropped), rows=rows))
    if dataset.truncated:
        console.warn(say("data.truncated", source=dataset.source, count=dataset.truncated, cutoff=cutoff_len))


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
            if progress.heals:
                what = "; ".join(
                    f"{heal['step']} {heal['kind']} {heal['module'] or ''}".rstrip() for heal in progress.heals
                )
                console.line(say("end.healed", n=len(progress.heals), what=what))
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
