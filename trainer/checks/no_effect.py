"""Keys that are set and change nothing, each with the reason: a knob that is turned in vain is told.

A value equal to the default is not told: config.yaml of a run folder spells every key out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...instrument.messages import say
from ..config.names import is_path, trackers_wanted
from ..config.schema import METRIC_DRIVEN, Config, sections

_NO_EVALUATION = "training.eval_strategy=no"


def _judged(config: Config) -> bool:
    training = config.training
    return (
        training.load_best_model_at_end
        or training.save_strategy == "best"
        or training.keep_best is not None
        or training.early_stopping_patience is not None
        or training.lr_scheduler_type in METRIC_DRIVEN
    )


# Keys -> when they change nothing, and the setting that makes it so.
RULES: list[tuple[tuple[str, ...], Callable[[Config], bool], str]] = [
    (
        ("precision.loss_scale", "precision.min_loss_scale"),
        lambda c: not c.training.fp16,
        "training.fp16=false",
    ),
    (("precision.min_loss_scale",), lambda c: not isinstance(c.precision.loss_scale, str), "precision.loss_scale"),
    (("precision.fp32_modules",), lambda c: c.compute_dtype == "float32", "training.fp16=false, bf16=false"),
    (("precision.max_heals",), lambda c: c.precision.on_collapse == "stop", "precision.on_collapse=stop"),
    (
        ("training.eval_steps", "training.per_device_eval_batch_size", "data.eval_limit"),
        lambda c: c.training.eval_strategy == "no",
        _NO_EVALUATION,
    ),
    (("training.eval_steps",), lambda c: c.training.eval_strategy == "epoch", "training.eval_strategy=epoch"),
    (("training.save_steps",), lambda c: c.training.save_strategy != "steps", "training.save_strategy"),
    (("training.save_total_limit",), lambda c: c.training.save_strategy == "no", "training.save_strategy=no"),
    (("training.logging_steps",), lambda c: c.training.logging_strategy != "steps", "training.logging_strategy"),
    (
        ("training.metric_for_best_model", "training.greater_is_better"),
        lambda c: not _judged(c),
        "training.load_best_model_at_end=false",
    ),
    (("data.cache", "data.padding_free"), lambda c: c.is_classifier, "model.task"),
    (("training.group_by_length",), lambda c: c.data.packing, "data.packing=true"),
    (("training.num_train_epochs",), lambda c: c.training.max_steps > 0, "training.max_steps"),
    (("training.warmup_ratio",), lambda c: c.training.warmup_steps > 0, "training.warmup_steps"),
    (
        ("training.warmup_ratio", "training.warmup_steps"),
        lambda c: c.training.lr_scheduler_type in ("constant", *METRIC_DRIVEN),
        "training.lr_scheduler_type",
    ),
    (
        ("training.lr_scheduler_kwargs",),
        lambda c: c.training.lr_scheduler_type in ("constant", "constant_with_warmup"),
        "training.lr_scheduler_type",
    ),
    (
        ("training.adam_beta1", "training.adam_beta2", "training.adam_epsilon"),
        lambda c: c.training.optim in ("sgd", "adafactor"),
        "training.optim",
    ),
    (("training.run_name",), lambda c: not trackers_wanted(c.training.report_to), "training.report_to=none"),
    (("training.hub_model_id",), lambda c: not c.training.push_to_hub, "training.push_to_hub=false"),
    (("model.revision",), lambda c: is_path(c.model.name_or_path), "model.name_or_path"),
    (
        tuple(
            f"quantization.{key}" for key in ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")
        ),
        lambda c: not c.quantization.load_in_4bit,
        "quantization.load_in_4bit=false",
    ),
    (
        ("quantization.llm_int8_threshold",),
        lambda c: not c.quantization.load_in_8bit,
        "quantization.load_in_8bit=false",
    ),
    (
        ("quantization.llm_int8_skip_modules",),
        lambda c: not (c.quantization.load_in_4bit or c.quantization.load_in_8bit),
        "quantization.load_in_4bit=false",
    ),
    (
        tuple(f"instrument.{key}" for key in ("sites", "histogram_every", "probe_every", "rows_every", "row_modules")),
        lambda c: not c.instrument.enabled,
        "instrument.enabled=false",
    ),
    (("instrument.rows_every", "instrument.row_modules"), lambda c: not c.instrument.rows, "instrument.rows=false"),
]


def without_effect(config: Config) -> Iterator[str]:
    """A sentence for each key that is set and changes nothing."""
    defaults = {name: section.model_fields for name, section in sections().items()}
    values, told = config.model_dump(), set()
    for keys, idle, reason in RULES:
        for key in keys:
            section, _, name = key.partition(".")
            if name not in values[section] or key in told:
                continue
            if values[section][name] != defaults[section][name].get_default() and idle(config):
                told.add(key)
                yield say("config.no_effect", key=key, reason=reason)
    quantized = config.quantization.load_in_4bit
    if config.training.fp16 and quantized and config.quantization.bnb_4bit_compute_dtype == "bfloat16":
        yield say("config.bf16_decode_in_fp16")
