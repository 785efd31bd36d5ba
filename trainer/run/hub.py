"""Uploads the final adapter to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token

from ...instrument.messages import say
from ..config.schema import Config
from ..console import Console
from ..errors import UserError, first_line, problem


def check_login(config: Config) -> None:
    """Asks for a token before the run rather than after it.

    Raises:
        UserError: training.push_to_hub is on and there is none.
    """
    if config.training.push_to_hub and get_token() is None:
        raise UserError(problem("hub.no_token"))


def push(folder: Path, config: Config, console: Console) -> int:
    """Uploads a folder; 0, or 1 if it failed, which is told with the command that tries again."""
    name = config.training.hub_model_id or Path(config.training.output_dir).expanduser().resolve().name
    try:
        repo = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Upload the LoRA adapter")
    except Exception as error:  # a dozen kinds of network trouble; the adapter is on disk
        console.line(str(problem("hub.failed", name=name, what=first_line(error), folder=folder)))
        return 1
    console.line(say("hub.pushed", url=repo))
    return 0
