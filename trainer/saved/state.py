"""trainer_state.json of a checkpoint: what a run writes there, and reading it as a file of unknown origin.

    {"schema_version": 1, <the fields of Progress>, "config": <a configuration>}

A key of a later version, one that is missing or has another type is said with its name: a state that is not understood
whole is not gone on from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...instrument.messages import say
from ...instrument.read.store import SCHEMA_VERSION
from ..config.names import checkpoint_step
from ..config.schema import Config
from ..config.settings import with_settings
from ..errors import kind_of_value
from .sums import STATE

# What a remedy changes. A checkpoint may come from somebody else: it names no model and lets no code run.
HEALABLE = (
    "data.skip_rows",
    "model.attn_implementation",
    "precision.fp32_modules",
    "precision.loss_scale",
    "precision.min_loss_scale",
    "training.learning_rate",
)
# Above every count of a run, and exact as a float.
LARGEST = 2**53

Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class Progress:
    """Where a run stands, as plain numbers.

    Attributes:
        step: attempted optimizer steps.
        start: resumes so far.
        skipped: steps whose gradients were not finite.
        train_seconds: spent in steps, over all starts; likewise evaluation and saving.
        final_loss: of the last step, None where it was not finite.
        heals: {"step", "kind", "module", "settings", "before"} for each collapse the run went on from.
        evaluations: (step, metric_for_best_model) of each evaluation. Lists are replaced, never changed.
        data_begins_after: the step after which the rows began from the first again (training.ignore_data_skip).
        evaluation_due: whether the evaluation after `step` was cut short: going on begins with it.
        processes: that take part in a step; 0 in a checkpoint that does not say.
    """

    step: int = 0
    start: int = 0
    skipped: int = 0
    train_seconds: float = 0.0
    eval_seconds_total: float = 0.0
    save_seconds_total: float = 0.0
    final_loss: float | None = None
    heals: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    data_begins_after: int = 0
    evaluation_due: bool = False
    processes: int = 0


class Torn(Exception):
    """A file of a run cannot be used; says which, and what is wrong with it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Heal(_Strict):
    step: Count
    kind: str
    module: str | None
    settings: dict[str, Any]
    before: dict[str, Any]


class _State(_Strict):
    """As `Progress`; what has a default is newer than the first release."""

    schema_version: Count = SCHEMA_VERSION
    step: Count
    start: Count
    skipped: Count
    train_seconds: Seconds
    eval_seconds_total: Seconds
    save_seconds_total: Seconds
    final_loss: Annotated[float, Field(allow_inf_nan=False)] | None
    heals: list[_Heal] = []
    evaluations: list[tuple[Count, float]] = []  # a metric may be NaN
    data_begins_after: Count = 0
    evaluation_due: bool = False
    processes: Count = 0
    config: Config


def state_text(progress: Progress, config: dict[str, Any]) -> str:
    """What trainer_state.json holds.

    Args:
        progress: where the run stands.
        config: the settings to go on with.
    """
    return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(progress), "config": config}, indent=1)


def read_state(folder: Path) -> tuple[Progress, Config]:
    """Where the run of a checkpoint stands, and its configuration.

    Raises:
        Torn: the file is not there, not whole, of a newer version, or of another step than the folder's name has.
    """
    values, text = read_json(folder / STATE)
    require_version(STATE, values)
    try:
        state = _State.model_validate_json(text)
    except ValidationError as error:
        raise Torn(first_of(error, STATE)) from None
    named = checkpoint_step(folder.name)
    if named not in (None, state.step):
        raise Torn(say("saved.other_step", file=STATE, step=state.step, named=named))
    facts: dict[str, Any] = state.model_dump(exclude={"schema_version", "config"})
    for number, heal in enumerate(facts["heals"]):
        _require_remedy(f"heals.{number}", heal, state.config)
    return Progress(**facts), state.config


def _require_remedy(key: str, heal: dict[str, Any], config: Config) -> None:
    """Refuses what no remedy of ours would have written."""
    foreign = sorted(heal["settings"].keys() - set(HEALABLE)) or sorted(heal["settings"].keys() ^ heal["before"].keys())
    if foreign:
        raise Torn(say("saved.bad_key", file=STATE, key=f"{key}.settings", what=foreign[0]))
    try:
        with_settings(config, heal["settings"])
    except ValidationError as error:
        raise Torn(first_of(error, f"{STATE}: {key}.settings")) from None


def read_json(file: Path) -> tuple[dict[str, Any], bytes]:
    """A JSON object, and its text.

    Raises:
        Torn: it cannot be read, or is none.
    """
    try:
        text = file.read_bytes()
        values = json.loads(text)
    except OSError as error:
        raise Torn(say("saved.unreadable", file=file.name, what=error.strerror)) from None
    except RecursionError:
        raise Torn(say("saved.too_deep", file=file.name)) from None
    except ValueError as error:  # not JSON, not UTF-8, a number of too many digits
        raise Torn(say("saved.unreadable", file=file.name, what=error)) from None
    if not isinstance(values, dict):
        raise Torn(say("saved.not_object", file=file.name, kind=kind_of_value(values)))
    return values, text


def require_version(file: str, values: dict[str, Any]) -> None:
    """Refuses what a later version has written."""
    version = values.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise Torn(say("saved.newer", file=file, version=str(version)[:20], known=SCHEMA_VERSION))


def first_of(error: ValidationError, file: str) -> str:
    """The first mistake that was found in a file, with its key."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"])) or "-"
    return say("saved.bad_key", file=file, key=key, what=first["msg"])
