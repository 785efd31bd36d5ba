"""From a YAML file and `section.key=value` overrides to a Config, with all problems reported at once.

Neither torch nor transformers is imported here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ...instrument.messages import say
from ..config.aliases import ours_for
from ..config.limits import MOST_STEPS
from ..config.names import TRACKERS, at_home, is_installed, is_path, trackers_wanted
from ..config.schema import METRIC_DRIVEN, Config, sections
from ..data.readers import kind_of as kind_of_rows
from ..errors import Problem, UserError, kind_of_value, problem
from ..importer.recognize import is_foreign_script, tool_of
from ..importer.sources import YAML_ERRORS, is_small, text_of
from ..patterns import wrong_with
from .data_checks import data_problems
from .task_checks import task_problems
from .unknown_keys import Unknown, bad_override, take_out

# Keys by the names transformers 4 had for them.
OLD_NAMES = {"training": {"evaluation_strategy": "eval_strategy"}, "model": {"torch_dtype": "dtype"}}
# transformers' schedule ends there and wants to start above it
POLYNOMIAL_LR_END = 1e-7
# `<<`, as YAML 1.1 calls it.
MERGE = "tag:yaml.org,2002:merge"
# What is said of any wrong value of a key, and else of a kind of mistake as pydantic calls it.
KEY_SENTENCES = {
    "lora.target_modules": "config.lora.target_modules",
    "precision.loss_scale": "config.precision.loss_scale",
    "training.save_safetensors": "config.training.save_safetensors",
}
KIND_SENTENCES = {
    "int_parsing": "config.int_parsing", "int_type": "config.int_type", "int_from_float": "config.int_from_float",
    "float_parsing": "config.float_parsing", "float_type": "config.float_type",
    "finite_number": "config.finite_number", "bool_parsing": "config.bool_parsing", "bool_type": "config.bool_type",
    "string_type": "config.string_type", "string_too_short": "config.string_too_short",
    "list_type": "config.list_type", "literal_error": "config.literal_error", "greater_than": "config.greater_than",
    "greater_than_equal": "config.greater_than_equal", "less_than": "config.less_than",
    "less_than_equal": "config.less_than_equal",
}  # fmt: skip
# Stand for a required key that is missing or wrong, so that the other checks still run.
PLACEHOLDER = {"name_or_path": "unknown/unknown", "train": "unknown/unknown"}


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of keeping the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:  # the keys of another mapping, which those that stand here win over
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                mark = key_node.start_mark
                raise yaml.MarkedYAMLError(None, None, say("config.duplicate_key", key=key), mark)
            seen.add(key) if isinstance(key, str) else None
        return super().construct_mapping(node, deep)


def read_config(path: str | Path, overrides: Sequence[str] = (), tell: Callable[[str], None] | None = None) -> Config:
    """Reads, overrides, validates and cross-checks a configuration.

    Args:
        path: YAML file with the sections of `Config`.
        overrides: `section.key=value`, where the value is YAML; they win over the file.
        tell: is given a sentence about keys of other trainers that change nothing; without it they are problems.

    Raises:
        UserError: carries every problem found.
    """
    raw, origin = read_sections(path), dict[str, str]()
    problems = list(_apply_overrides(raw, overrides, origin))
    return check(raw, lambda key: origin.get(key, str(path)), tell, problems)


def read_sections(path: str | Path) -> dict[str, Any]:
    """What a file of ours says, as it stands there.

    Raises:
        UserError: it cannot be read, or is another tool's.
    """
    raw = read_mapping(Path(path))
    tool = tool_of(raw)
    if tool is not None:
        raise UserError(_foreign(Path(path), tool))
    return raw


def check(
    raw: dict[str, Any],
    where: Callable[[str], str],
    tell: Callable[[str], None] | None = None,
    problems: Sequence[Problem] = (),
) -> Config:
    """The configuration of sections of keys and values.

    Args:
        where: what a problem with a key names as its place.
        tell: as in `read_config`.
        problems: that were found before.

    Raises:
        UserError: carries every problem found.
    """
    if tell is not None:
        for sentence in _accepted(raw):
            tell(sentence)
    config, found = _validate(raw, where)
    problems = [*problems, *found]
    if problems:
        raise UserError(*problems)
    assert config is not None
    return config


def read_settings(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What the overrides set, validated within the configuration: {"section.key": value}.

    Raises:
        UserError: carries every problem found.
    """
    values = read_config(path, overrides).model_dump()
    keys = [override.partition("=")[0] for override in overrides]
    return {key: values[key.partition(".")[0]][key.partition(".")[2]] for key in keys}


def problems_of(raw: dict[str, Any], file: str) -> list[Problem]:
    """Everything that is wrong with sections of keys and values that come from no file of ours."""
    return _validate(raw, lambda _: file)[1]


def _accepted(raw: dict[str, Any]) -> Iterator[str]:
    """Takes out what changes nothing, and says so in one sentence; says what `bf16: auto` is taken for."""
    ignored = take_out(raw)
    if ignored:
        yield say("config.ignored", keys=", ".join(ignored))
    training = raw.get("training")
    if isinstance(training, dict) and str(training.get("bf16")).lower() == "auto":
        yield say("config.bf16_auto")


def _foreign(path: Path, tool: str | None) -> Problem:
    """Whose file it is, None for a script, and the command that makes one of ours of it."""
    output = shlex.quote(path.with_suffix("").name + "-lora-train.yaml")
    values = {"file": path, "quoted": shlex.quote(str(path)), "output": output}
    return problem("config.script", **values) if tool is None else problem("config.foreign", **values, tool=tool)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file as it stands there.

    Raises:
        UserError: it cannot be read, or holds no keys.
    """
    if is_foreign_script(path) and path.is_file():
        raise UserError(_foreign(path, None))
    if kind_of_rows(path) not in ("", ".json", ".txt") and path.is_file():
        raise UserError(problem("config.is_data", file=path, quoted=shlex.quote(str(path))))
    text = text_of(path, "config.not_there")
    try:
        raw = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise UserError(problem("import.too_deep", file=path)) from None
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = say("config.line", line=mark.line + 1, column=mark.column + 1) if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise UserError(problem("config.not_yaml", file=path, where=where, what=what)) from None
    if raw is None:
        raise UserError(problem("config.empty", file=path))
    if not isinstance(raw, dict):
        raise UserError(problem("config.not_mapping", file=path, kind=kind_of_value(raw)))
    if not is_small(raw):
        raise UserError(problem("import.too_deep", file=path))
    return {str(key): value for key, value in raw.items()}


def _apply_overrides(raw: dict, overrides: Sequence[str], origin: dict[str, str]) -> Iterator[Problem]:
    for override in overrides:
        key, equals, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            yield bad_override(override)
            continue
        try:
            value = yaml.load(text, Loader=_Loader)
        except (*YAML_ERRORS, RecursionError):
            yield problem("config.override_not_yaml", key=key, text=text)
            continue
        if raw.get(section) is None:
            raw[section] = {}
        if isinstance(raw[section], dict):
            raw[section][name] = value
            origin[key] = say("config.command_line")


def _validate(raw: dict[str, Any], where) -> tuple[Config | None, list[Problem]]:
    """The config, or the problems of every section and of the sections taken together."""
    problems: list[Problem] = []
    known, unknown = sections(), Unknown()
    for name, value in raw.items():
        if name not in known:
            sentence = "config.unknown_section" if isinstance(value, dict) else "config.key_outside"
            problems.append(unknown(where(name), name, list(known), sentence))
    good: dict[str, dict[str, Any]] = {}
    for name, schema in known.items():
        values = raw.get(name) if raw.get(name) is not None else {}
        if not isinstance(values, dict):
            problems.append(problem("config.section_not_mapping", file=where(name), section=name, value=values))
            values = {}
        values = _in_our_words(name, values)
        bad: dict[str, Problem] = {}
        try:
            schema.model_validate(values)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                key = f"{name}.{detail['loc'][0]}"
                bad.setdefault(key, _explain(where(key), key, detail, values))
                if detail["type"] == "extra_forbidden":
                    bad[key] = unknown(where(key), key, list(schema.model_fields), "config.unknown_key")
        problems += bad.values()
        good[name] = {key: value for key, value in values.items() if f"{name}.{key}" not in bad}
        for key, field in schema.model_fields.items():
            if field.is_required():
                good[name].setdefault(key, PLACEHOLDER[key])
    config = Config.model_validate(good)
    broken = {text.error for text in problems}
    problems += [found for found in _cross_checks(config, where) if found.error not in broken]
    return (None if problems else config), problems


def _in_our_words(section: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values of a section under the names and in the words that its schema has."""
    named = {str(key): value for key, value in values.items()}
    old = {key: OLD_NAMES.get(section, {}).get(key, key) for key in named}
    named = {old[key] if old[key] not in named else key: value for key, value in named.items()}
    return {key: ours_for(f"{section}.{key}", value) for key, value in named.items()}


def _explain(file: str, key: str, detail: ErrorDetails, values: Mapping[str, Any]) -> Problem:
    """One pydantic error in our words: file, key, what was given, what is allowed."""
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "missing":
        return problem("config.missing", file=file, key=key)
    sentence = KEY_SENTENCES.get(key) or KIND_SENTENCES.get(kind) or "config.invalid"
    given = values.get(key.partition(".")[2], given)
    if "expected" in context:
        context["expected"] = context["expected"].replace("'", "").replace(" or ", ", ")
    limits = {name: f"{limit:.20g}" for name, limit in context.items() if name in ("gt", "ge", "lt", "le")}
    return problem(sentence, file=file, key=key, value=_short(given), what=detail["msg"], **(context | limits))


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, (dict, list)) else yaml.safe_dump(value, default_flow_style=True)
    text = text.strip()
    return text if len(text) <= 60 else text[:57] + "..."


def _tracker_problems(config: Config, where) -> Iterator[Problem]:
    file = where("training.report_to")
    for name in trackers_wanted(config.training.report_to):
        if name not in TRACKERS:
            yield problem("config.no_such_tracker", file=file, name=name, known=", ".join(TRACKERS))
        elif not is_installed(TRACKERS[name]):
            package = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml"}.get(name, name)
            yield problem("config.tracker_not_installed", file=file, name=name, package=package)


def _evaluation_problems(config: Config, where) -> Iterator[Problem]:
    """Evaluation that is asked for and cannot be, or is needed and not asked for."""
    training, data = config.training, config.data
    if data.eval is not None and data.eval_fraction > 0:
        yield problem("config.eval_twice", file=where("data.eval"))
    if training.eval_strategy != "no":
        if data.eval is None and data.eval_fraction == 0:
            yield problem("config.eval_without_data", file=where("training.eval_strategy"))
        return
    needs = {
        "load_best_model_at_end": training.load_best_model_at_end,
        "keep_best": training.keep_best is not None,
        "early_stopping_patience": training.early_stopping_patience is not None,
        "save_strategy": training.save_strategy == "best",
        "lr_scheduler_type": training.lr_scheduler_type in METRIC_DRIVEN,
    }
    for key in (key for key, needed in needs.items() if needed):
        value = getattr(training, key)
        yield problem("config.needs_evaluation", file=where(f"training.{key}"), key=key, value=value)


def _cross_checks(config: Config, where) -> Iterator[Problem]:
    """Contradictions between keys, and files that are not there."""
    training, data, quantization = config.training, config.data, config.quantization
    if training.fp16 and training.bf16:
        yield problem("config.fp16_and_bf16", file=where("training.fp16"))
    if config.compute_dtype == "float32" and config.model.dtype not in ("auto", "float32"):
        yield problem("config.storage_without_compute", file=where("model.dtype"), dtype=config.model.dtype)
    if {config.compute_dtype, config.model.dtype} == {"float16", "bfloat16"}:
        yield problem("config.two_16bit_dtypes", file=where("model.dtype"), dtype=config.model.dtype)
    yield from _evaluation_problems(config, where)
    yield from _tracker_problems(config, where)
    if not config.lora.target_modules:
        yield problem("config.no_target_modules", file=where("lora.target_modules"))
    if isinstance(pattern := config.lora.target_modules, str) and (what := wrong_with(pattern)):
        yield problem("config.no_pattern", file=where("lora.target_modules"), pattern=_short(pattern), what=what)
    if quantization.bnb_4bit_use_double_quant and not quantization.load_in_4bit:
        yield problem("config.double_quant_without_4bit", file=where("quantization.bnb_4bit_use_double_quant"))
    if quantization.load_in_4bit and quantization.load_in_8bit:
        yield problem("config.4bit_and_8bit", file=where("quantization.load_in_8bit"))
    if (quantization.load_in_4bit or quantization.load_in_8bit) and not is_installed("bitsandbytes"):
        yield problem("config.no_bitsandbytes", file=where("quantization.load_in_4bit"))
    if training.optim.endswith("bit") and not is_installed("bitsandbytes"):
        yield problem("config.no_bitsandbytes_optim", file=where("training.optim"), optim=training.optim)
    if training.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in training.lr_scheduler_kwargs:
        yield problem("config.wsd_needs_decay", file=where("training.lr_scheduler_kwargs"))
    if training.lr_scheduler_type == "polynomial" and training.learning_rate <= POLYNOMIAL_LR_END:
        yield problem("config.polynomial_lr", file=where("training.learning_rate"), end=POLYNOMIAL_LR_END)
    if training.max_steps == 0:
        yield problem("config.zero_steps", file=where("training.max_steps"))
    if training.max_steps > MOST_STEPS:
        place = f"{where('training.max_steps')}: training.max_steps: "
        steps, most = f"{training.max_steps:,}", f"{MOST_STEPS:,}"
        yield problem("config.too_many_steps", where=place, steps=steps, most=most)
    yield from data_problems(data, where)
    yield from task_problems(config, where)
    model = config.model.name_or_path
    if is_path(model) and not at_home(model).exists():
        yield problem("config.no_model", file=where("model.name_or_path"), path=model)
    output_dir = at_home(training.output_dir)
    if "\0" in training.output_dir:
        yield problem("config.no_name", file=where("training.output_dir"), key="training.output_dir")
    elif output_dir.exists() and not output_dir.is_dir():
        yield problem("config.output_is_file", file=where("training.output_dir"), path=training.output_dir)
