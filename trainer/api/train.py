"""`train`: a run from Python. The process is afterwards as it was, also after an error or the stop button.

A notebook keeps the traceback of an error, and with it every frame and every tensor of the run; so the frames that have
ended are cleared before the error goes on. What the run set for the process (transformers' function for rotary
embeddings, its log level, filters of warnings) is set back.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...instrument.messages import say
from ..console import Console, quiet_libraries
from ..errors import Stopped
from .progress import NotebookConsole, in_notebook
from .run import Run
from .settings import settings


def train(config: Mapping[str, Any] | str | Path, *, resume: str | Path | None = None, **overrides: Any) -> Run:
    """Trains an adapter, as `lora-train --config` does; in a notebook with a bar that moves.

    Args:
        config: a YAML file, or its sections as a dict: {"model": {...}, "data": {...}, "training": {...}}.
        resume: "auto" for the newest checkpoint of training.output_dir, or a checkpoint.
        overrides: keys that win over it, by name (`learning_rate=1e-4`), as a section (`training={...}`) or with the
            section in the name (`**{"training.learning_rate": 1e-4}`).

    Returns:
        the run folder; of a run that collapsed too, which `Run.explain` says.

    Raises:
        UserError: configuration, data, model or checkpoint cannot be used; nothing was written.
        Stopped: the disk refused what must be written, or another process is gone.
        KeyboardInterrupt: the stop button; a checkpoint holds the state reached, and `resume="auto"` goes on from it.
    """
    from ..hub import ask_for_run

    console = NotebookConsole() if in_notebook() else Console()
    checked = settings(config, overrides, console.line)
    ask_for_run(checked)
    folders: list[Path] = []
    try:
        with _left_as_found():
            from ..run.start import run  # imports torch, which takes seconds

            code = run(checked, None if resume is None else str(resume), console, folders.append)
    except BaseException as error:
        _let_go(error)
        raise
    if code >= 128:
        raise KeyboardInterrupt(say("api.interrupted", folder=folders[-1]))
    if code == 1:
        raise Stopped(say("api.stopped", folder=folders[-1] if folders else checked.training.output_dir))
    return Run(folders[-1])


@contextlib.contextmanager
def _left_as_found() -> Iterator[None]:
    """Gives back what a run sets for its process, and the memory that only a collection of garbage finds."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    with warnings.catch_warnings():
        quiet_libraries()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
            from ...kernels import cross_entropy
            from ..model.fast_path import give_rotary_back

            give_rotary_back()
            vars(cross_entropy._held).clear()  # 128 MiB for logits on the CPU, which a command keeps until it ends
            gc.collect()


def _let_go(error: BaseException) -> None:
    """Clears the variables of every frame that an error and its causes went through; a running one keeps its own."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__]
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
