"""Which adapter a name means, and what is known of it: for the verbs that read a finished or running run.

    RUN                    its adapter/, else its newest checkpoint
    RUN/checkpoint-500     the checkpoint itself
    FOLDER                 any folder in peft's format
    FOLDER/NAME            one of the adapters that peft saved into one folder under their names

Nothing is renamed, repaired or written, and neither torch nor transformers is imported.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...instrument.read.damaged import parse_own_json, parse_yaml
from ...instrument.read.files import read_own
from ...instrument.read.store import METRICS
from ..config.names import checkpoint_step, is_path
from ..errors import UserError, first_line, problem

if TYPE_CHECKING:
    from ..config.schema import Config

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
CHECKPOINT_STATE = "trainer_state.json"
RUN_CONFIG = "config.yaml"
KINDS = ("LORA", "ADALORA")
_PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class Adapter:
    """A trained adapter on disk.

    Attributes:
        folder: holds adapter_model.safetensors and adapter_config.json.
        settings: adapter_config.json.
        config: of the run that made it; None for an adapter of another program.
        trust_remote_code: whether Python code that comes with the base model may run. The user's word alone:
            folders are passed on, so what a run's configuration says does not count.
        others: names of the adapters in folders of their own beside this one.
    """

    folder: Path
    settings: dict[str, Any]
    config: Config | None
    trust_remote_code: bool = False
    others: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The base model: as the run's configuration names it, else as peft noted it."""
        return self.config.model.name_or_path if self.config else str(self.settings["base_model_name_or_path"])

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of the base model; None: main."""
        if self.config:
            return self.config.model.revision
        revision = self.settings.get("revision")
        return str(revision) if revision else None


def find_weights(path: Path) -> Path:
    """The adapter_model.safetensors that a run, checkpoint or adapter folder stands for.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        raise UserError(problem("adapter.not_a_folder" if path.exists() else "adapter.no_folder", path=path))
    try:
        steps = {child: checkpoint_step(child.name) for child in path.iterdir()}
    except OSError as error:
        raise UserError(problem("adapter.unreadable", file=path, what=error.strerror)) from None
    checkpoints = sorted((-step, child) for child, step in steps.items() if step is not None)
    for folder in (path, path / "adapter", *(child for _, child in checkpoints)):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    names = named_adapters(path)
    if len(names) > 1:
        raise UserError(problem("adapter.several", path=path, names=", ".join(names), first=names[0]))
    if names:
        return path / names[0] / WEIGHTS
    if (path / _PICKLE).is_file():
        raise UserError(problem("adapter.pickle", path=path))
    below = sorted(path.glob(f"*/adapter/{WEIGHTS}"), key=lambda file: -file.stat().st_mtime)
    if below:
        quoted = shlex.quote(str(path))
        raise UserError(problem("adapter.below", path=path, first=below[0].parent.parent, n=len(below), quoted=quoted))
    raise UserError(problem("adapter.none_here", path=path))


def named_adapters(folder: Path) -> tuple[str, ...]:
    """The adapters that peft saved under their names, each in a folder of its own; not a run's checkpoints."""
    found = (file.parent.name for file in folder.glob(f"*/{WEIGHTS}") if (file.parent / SETTINGS).is_file())
    return tuple(sorted(name for name in found if checkpoint_step(name) is None and name != "adapter"))


def read_adapter(path: Path, trust_remote_code: bool = False) -> Adapter:
    """Finds an adapter and reads what it was trained with.

    Raises:
        UserError: there is none, what describes it cannot be read or is not of a LoRA, or its base model is gone.
    """
    folder = find_weights(path).parent
    settings = read_settings_of(folder)
    if settings is None:
        raise UserError(problem("adapter.no_settings", folder=folder))
    if settings.get("peft_type") not in KINDS:
        raise UserError(problem("adapter.not_lora", file=folder / SETTINGS, kind=settings.get("peft_type")))
    config = _run_config(folder)
    if config is None and not settings.get("base_model_name_or_path"):
        raise UserError(problem("adapter.no_base", file=folder / SETTINGS))
    if config is None and not isinstance(named := settings["base_model_name_or_path"], str):
        key = "base_model_name_or_path"
        raise UserError(problem("adapter.bad_key", file=folder / SETTINGS, key=key, value=named, expected="text"))
    adapter = Adapter(folder, settings, config, trust_remote_code, named_adapters(folder))
    base = os.path.expanduser(adapter.base)  # pathlib raises where there is no such user
    if is_path(adapter.base) and not os.path.exists(base):
        raise UserError(problem("adapter.base_gone", folder=folder, base=adapter.base))
    if os.path.isfile(os.path.join(base, SETTINGS)):
        raise UserError(problem("adapter.base_is_adapter", folder=folder, base=adapter.base))
    return adapter


def read_settings_of(folder: Path) -> dict[str, Any] | None:
    """adapter_config.json as it is, None where there is none.

    Raises:
        UserError: it is not a JSON object.
    """
    file = folder / SETTINGS
    return _read_json(file) if file.is_file() else None


def require_new_folder(output: Path) -> None:
    """Refuses a folder that exists or that cannot be made, before minutes are spent on what goes into it.

    Raises:
        UserError: see above.
    """
    if output.exists() or output.is_symlink():
        raise UserError(problem("merge.exists", folder=output))
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = os.strerror(errno.EACCES if parent.is_dir() else errno.ENOTDIR)
        raise UserError(problem("merge.cannot_write", folder=output, what=f"{what} ({parent})"))


def scaling(settings: dict[str, Any], module: str, r: int) -> float:
    """What peft multiplies B @ A of a module with: lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA.

    AdaLoRA's r is the one it began with, whatever it has left of it, and stands beside 1e-5.

    Raises:
        ValueError: the settings hold no number for it.
    """
    alpha = _of_module(settings, "alpha_pattern", module, settings.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha {alpha}")
    if settings.get("peft_type") == "ADALORA":
        return alpha / (int(settings.get("init_r") or r) + 1e-5)
    return alpha / r**0.5 if settings.get("use_rslora") else alpha / r


def adapted_parameters(settings: dict[str, Any], module: str) -> list[str]:
    """The parameters of a module that `target_parameters` names, as `module.parameter`; a linear's weight not.

    Source: peft's tuners_utils.BaseTuner._inject_parameters. Of several, the file does not tell which is which.
    """
    named = settings.get("target_parameters")
    pairs = [name.rpartition(".")[::2] for name in named if isinstance(name, str)] if isinstance(named, list) else []
    own = module.replace(".base_layer", "")
    return [f"{own}.{last}" for place, last in sorted(pairs) if not place or f".{own}".endswith(f".{place}")]


def ranks_of(settings: dict[str, Any], names: Iterable[str]) -> set[Any]:
    """What `r` and `rank_pattern` give to modules or parameters."""
    return {_of_module(settings, "rank_pattern", name, settings.get("r")) for name in names}


def _of_module(settings: dict[str, Any], patterns: str, module: str, otherwise: Any) -> Any:
    found = (settings.get(patterns) or {}).items()
    return next((value for key, value in found if re.fullmatch(rf"(.*\.)?({key})", module)), otherwise)


def _run_config(folder: Path) -> Config | None:
    """The configuration beside a run's adapter, or within a checkpoint that was copied away from its run."""
    beside, inside = folder.parent / RUN_CONFIG, folder / CHECKPOINT_STATE
    if inside.is_file():
        # transformers' Trainer writes a file of this name as well, without a configuration
        values = _read_json(inside).get("config")
        return _as_config(inside, values) if values is not None else None
    if folder.name == "adapter" and beside.is_file() and (folder.parent / METRICS).is_file():
        return _as_config(beside, _read_yaml(beside))
    return None


def _as_config(file: Path, values: Any) -> Config | None:
    # not read_config: a data file that has moved since does not matter here
    from pydantic import ValidationError

    from ..config.schema import Config

    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "-"
        raise UserError(problem("adapter.bad_config", file=file, key=key, what=first["msg"])) from None


def _read_yaml(file: Path) -> Any:
    import yaml

    try:
        return parse_yaml(read_own(file))
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise UserError(problem("adapter.unreadable", file=file, what=first_line(error))) from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = parse_own_json(read_own(file))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(problem("adapter.unreadable", file=file, what=error)) from None
    if not isinstance(values, dict):
        raise UserError(problem("adapter.unreadable", file=file, what=type(values).__name__))
    return values
