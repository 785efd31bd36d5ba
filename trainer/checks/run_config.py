"""The configuration that a run was made with, as its folder has it."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from ...instrument.read.damaged import parse_yaml
from ...instrument.read.files import read_own
from ..config.schema import Config
from .read_config import read_config


def run_config(path: Path) -> Config:
    """Reads config.yaml of a run; its data may lie elsewhere by now, and is not looked for.

    Raises:
        UserError: it is none of this version's.
    """
    try:
        return Config.model_validate(parse_yaml(read_own(path)))
    except (OSError, ValidationError, yaml.YAMLError, RecursionError, ValueError):
        return read_config(path)  # says what is wrong with it
