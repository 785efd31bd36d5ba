"""Uploads the final adapter to the hub."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from ...instrument.messages import say
from ..config.names import at_home
from ..config.schema import Config
from ..console import Console, note
from ..errors import UserError, first_line, problem
from ..hub import Unreachable, hub_problem, limit_first_answer
from .model_card import shared_name, without_place

SETTINGS = "adapter_config.json"


def check_login(config: Config) -> None:
    """Asks for a token that the hub takes before the run rather than after it; a hub that is away may be back by then.

    Raises:
        UserError: training.push_to_hub is on and there is none.
    """
    if not config.training.push_to_hub:
        return
    if get_token() is None:
        raise UserError(problem("hub.no_token"))
    limit_first_answer()
    try:
        HfApi().whoami()
    except Unreachable as error:
        note(say("hub.later", what=error.problem.error))
    except Exception as error:  # a dozen kinds of network trouble
        why = hub_problem(error, _name(config))
        if why is None:
            note(say("hub.later", what=first_line(error)))
        else:
            raise UserError(why) from error


def push(folder: Path, config: Config, console: Console) -> int:
    """Uploads a folder; 0, or 1 if it failed, which is told with the command that tries again."""
    name = _name(config)
    limit_first_answer()
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    try:
        repo = HfApi().create_repo(name, exist_ok=True)
        HfApi().create_commit(
            repo.repo_id,
            [CommitOperationAdd(str(path.relative_to(folder)), _shared(path, config)) for path in files],
            commit_message="Upload the LoRA adapter",
        )
    except Exception as error:  # a dozen kinds of network trouble; the adapter is on disk
        why = hub_problem(error, name)
        what = first_line(error) if why is None else why.error
        console.line(str(problem("hub.failed", name=name, what=what, folder=folder)))
        return 1
    console.line(say("hub.pushed", url=repo))
    return 0


def _name(config: Config) -> str:
    return config.training.hub_model_id or at_home(config.training.output_dir).resolve().name


def _shared(path: Path, config: Config) -> str | bytes:
    """A file as others are to see it: a base model on this machine's disk by its name alone."""
    if path.name != SETTINGS:
        return str(path)
    settings = json.loads(path.read_text(encoding="utf-8"))
    base = config.model.name_or_path
    settings["base_model_name_or_path"] = shared_name(base) or without_place(base)
    return json.dumps(settings, indent=2, sort_keys=True).encode()
