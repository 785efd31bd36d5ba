"""Going on from a checkpoint: which one, what it changes."""

from __future__ import annotations

import re
from pathlib import Path

from ...instrument.messages import say
from ..config.names import at_home, checkpoint_step
from ..config.schema import Config
from ..config.settings import with_settings
from ..console import Console
from ..errors import UserError, problem
from ..loop.checkpoint import checkpoints
from ..loop.components import Components
from ..loop.lr_schedule import lr_table
from ..saved.state import Progress, read_state
from ..saved.sums import STATE
from ..saved.whole import what_is_torn
from .folder import family

# What a resumed run may change without becoming another run.
FREE_TO_CHANGE = re.compile(
    r"training\.(output_dir|max_steps|max_hours|num_train_epochs|resume_from_checkpoint|ignore_data_skip|on_write_error"
    r"|report_to|run_name|push_to_hub|hub_model_id|(logging|eval|save)_.*)|data\.(cache|eval_limit)|instrument\..*"
)


def resume_from(resume: str | None, config: Config) -> str | None:
    """What --resume said, else training.resume_from_checkpoint: "auto", a folder, or None."""
    if resume is not None:
        return resume
    setting = config.training.resume_from_checkpoint
    return ("auto" if setting else None) if setting is None or isinstance(setting, bool) else setting


def find_checkpoint(resume: str, output_dir: str, console: Console) -> Path | None:
    """The checkpoint that --resume means; of a run the newest that is whole.

    Args:
        resume: "auto" (the newest run of output_dir that has a checkpoint), a run folder or a checkpoint folder.

    Returns:
        None if `resume` is "auto" and there is nothing to resume.

    Raises:
        UserError: no folder is named, or it holds no checkpoint, or none that is whole.
    """
    if not resume.strip():  # of a variable that is not set: a run from the beginning is not what is meant
        raise UserError(problem("resume.unnamed"))
    if resume == "auto":
        runs = [run for run in reversed(family(output_dir)) if checkpoints(run)]
        return newest_whole(runs[0], console) if runs else None
    folder = at_home(resume)
    if (folder / STATE).is_file() or checkpoint_step(folder.name) is not None:
        if what := what_is_torn(folder):
            raise UserError(problem("checkpoint.broken", folder=folder, what=what))
        return folder
    if checkpoints(folder):
        return newest_whole(folder, console)
    raise UserError(problem("resume.nothing", folder=folder))


def newest_whole(run_dir: Path, console: Console) -> Path:
    """The newest checkpoint of a run that is whole; says which were passed over.

    Raises:
        UserError: none is.
    """
    found = checkpoints(run_dir)
    for folder in reversed(found):
        what = what_is_torn(folder)
        if not what:
            return folder
        console.warn(say("checkpoint.passed_over", folder=folder, what=what))
    raise UserError(problem("checkpoint.none_whole", folder=run_dir, count=len(found)))


def with_heals(config: Config, checkpoint: Path) -> Config:
    """The configuration with what healed the run before, where the user has not set the key since."""
    for heal in read_state(checkpoint)[0].heals:
        now = config.model_dump()
        kept = {
            key: value
            for key, value in heal["settings"].items()
            if isinstance(value, list) or _at(now, key) == heal["before"][key]
        }
        config = with_settings(config, kept)
    return config


def changed_settings(checkpoint: Path, config: Config) -> list[str]:
    """Keys whose values differ from the checkpoint's and change what is computed.

    Raises:
        UserError: the optimizer differs: its state cannot be carried over.
    """
    before = read_state(checkpoint)[1].model_dump()  # keys that were added since have their defaults
    now = config.model_dump()
    keys = [f"{section}.{key}" for section, values in now.items() for key in values]
    changed = [key for key in keys if _at(before, key) != _at(now, key) and not FREE_TO_CHANGE.fullmatch(key)]
    if "training.optim" in changed:
        raise UserError(problem("resume.optim", before=_at(before, "training.optim"), now=config.training.optim))
    return changed


def moved_lengths(checkpoint: Path, components: Components) -> list[str]:
    """Keys of the run's length that differ from the checkpoint's and move a rate still to come, or end the run."""
    progress, before = read_state(checkpoint)
    training, now = before.training, components.config.training
    keys = [key for key in ("max_steps", "num_train_epochs") if getattr(training, key) != getattr(now, key)]
    if not keys:
        return []
    n_before = components.plan.n_steps(training.num_train_epochs, training.max_steps)
    first, last = progress.step, min(n_before, components.n_steps)
    # as the schedule of now would be: another schedule is told by its own name
    rates = [lr_table(now, n)[first : last + 1] for n in (n_before, components.n_steps)]
    is_over = progress.step > components.n_steps
    return [] if rates[0] == rates[1] and not is_over else [f"training.{key}" for key in keys]


def other_processes(progress: Progress, now: int) -> list[str]:
    """What is said of another number of processes than the checkpoint's: a step takes other rows."""
    then = progress.processes
    return [say("resume.processes", then=then, now=now)] if then not in (0, now) else []


def _at(settings: dict, key: str) -> object:
    section, _, name = key.partition(".")
    return settings.get(section, {}).get(name)
