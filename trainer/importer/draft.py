"""What is being made of another trainer's configuration: our values, where each is from, and what is left over.

A source format's module takes keys out of the draft one by one; `close` judges those that nobody took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...instrument.messages import say
from ..config.aliases import NEAR_OPTIMIZERS, ours_for
from ..config.schema import TASKS, sections
from .left_out import WHY, is_default, is_off, weight

# Keys that name a model and data of the reader's own; said where the other tool's file holds none.
NO_MODEL = "owner/model"
NO_DATA = "owner/data"
# More keys than this in one file is no configuration.
_SHOWN = 60


class Unreadable(ValueError):
    """A value is not of the kind its key takes."""


@dataclass(frozen=True)
class LeftOver:
    """A key without a counterpart.

    Attributes:
        key: its name there.
        value: what it was set to, short.
        weight: "harmless", "memory", or what differs without it (a word of left_out.CHANGES, or "unknown").
        why: one sentence.
    """

    key: str
    value: str
    weight: str
    why: str

    @property
    def matters(self) -> bool:
        """Whether what is learned differs."""
        return self.weight not in ("harmless", "memory")


@dataclass
class Draft:
    """A configuration of ours in the making.

    Attributes:
        tool: whose file it is, as its users call it.
        raw: the file's keys.
        values: `section.key` -> value.
        origin: `section.key` -> the key there that it is from; a default of theirs has none.
        remarks: `section.key` -> a sentence that stands behind it.
        left: keys without a counterpart.
        refused: sentences; with one there is no configuration.
    """

    tool: str
    raw: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    left: list[LeftOver] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def take(self, *keys: str) -> Any:
        """The value of the first of these keys that is set; all of them count as dealt with."""
        self.taken.update(keys)
        return next((self.raw[key] for key in keys if self.raw.get(key) is not None), None)

    def put(self, ours: str, value: Any, theirs: str = "", remark: str = "") -> None:
        """Sets `section.key`; None leaves it at our default."""
        if value is None:
            return
        self.values[ours] = value
        if theirs:
            self.origin[ours] = theirs
        if remark:
            self.remarks[ours] = remark

    def copy(self, ours: str, theirs: str, default: Any = None) -> None:
        """Takes a key over under our name, in our words and as our type; else the default that it has there."""
        value = self.take(theirs)
        if value is None:
            self.put(ours, default, remark=say("import.their_default", tool=self.tool) if default is not None else "")
            return
        try:
            value = ours_for(ours, value)
            self.put(ours, _KINDS.get(_kind(ours), _as_it_is)(value), theirs)
        except Unreadable:
            self.leave(theirs, value, "unknown", say("import.why.unreadable"))

    def copy_all(self, names: Mapping[str, str]) -> None:
        """`copy` for each of their names -> ours."""
        for theirs, ours in names.items():
            self.copy(ours, theirs)

    def leave(self, key: str, value: Any, weight: str, why: str = "") -> None:
        """Says of a key that it has no counterpart."""
        self.taken.add(key)
        self.left.append(LeftOver(key, short(value), weight, why or say(WHY[weight])))

    def refuse(self, sentence: str, **values: Any) -> None:
        """Says why there can be no configuration."""
        self.refused.append(say(sentence, **values))

    def task(self, value: Any, theirs: str) -> None:
        """model.task, by PEFT's word or the class that a script loads; another task is refused."""
        word = str(value).rpartition(".")[2]
        if (ours := _TASKS.get(word.upper()) or _CLASSES.get(word.partition("For")[2])) is None:
            return self.refuse("import.refused.other_task", value=value)
        return self.put("model.task", ours, theirs) if ours != "causal_lm" else None

    @property
    def is_classifier(self) -> bool:
        """Whether it gives labels to rows or words."""
        return "model.task" in self.values

    def labels(self) -> None:
        """Takes what from_pretrained is told of a head; how many labels there are, the rows say."""
        n, kind = self.take("num_labels"), self.take("problem_type")
        self.take("id2label", "label2id", "ignore_mismatched_sizes", "classifier_dropout")
        if kind in choices("model.problem_type"):
            self.put("model.problem_type", kind, "problem_type")
        elif n == 1 and self.values.get("model.task") == "seq_cls":
            self.put("model.problem_type", "regression", "num_labels")

    def _without_text(self) -> None:
        """Leaves out what only a language model has, and the head, which a classifier saves by itself."""
        for key in (
            "data.train_on_inputs",
            "data.packing",
            "data.prompt_template",
            "data.chat_template",
            "data.format",
        ):
            self.values.pop(key, None)
        saved = self.values.get("lora.modules_to_save")
        if isinstance(saved, list):
            self.put("lora.modules_to_save", [name for name in saved if name not in HEAD_MODULES] or None)
            if not set(saved) - set(HEAD_MODULES):
                self.values.pop("lora.modules_to_save")

    def close(self) -> Draft:
        """Judges the keys that nobody took: what is off asks for nothing, the others are left over."""
        if not is_off(code := self.take("trust_remote_code")):
            self.leave("trust_remote_code", code, "harmless", say("import.why.remote_code"))
        if self.is_classifier:
            self._without_text()
        for key, value in self.raw.items():
            if key not in self.taken and not (is_default(key, value) and weight(key) != "harmless"):
                self.leave(key, value, weight(key))
        self.put("model.name_or_path", self.values.get("model.name_or_path", NO_MODEL))
        self.put("data.train", self.values.get("data.train", NO_DATA))
        for key, stands_for in (("model.name_or_path", NO_MODEL), ("data.train", NO_DATA)):
            if self.values[key] == stands_for and key not in self.origin:
                self.remarks[key] = say("import.fill_in")
        return self

    def optimizer(self, theirs: str, default: str) -> None:
        """training.optim: by its name or another for it; another optimizer is left over and ours stays."""
        value = self.take(theirs)
        if value is None:
            return self.put("training.optim", default, remark=say("import.their_default", tool=self.tool))
        ours = ours_for("training.optim", value)
        if ours not in choices("training.optim"):
            return self.leave(theirs, value, "optimizer", say("import.why.no_optimizer"))
        near = isinstance(value, str) and value.lower() in NEAR_OPTIMIZERS
        return self.put("training.optim", ours, theirs, say("import.near_optimizer") if near else "")

    def schedule(self, theirs: str, default: str) -> None:
        """training.lr_scheduler_type, as `optimizer`."""
        value = self.take(theirs)
        if value is None:
            return self.put("training.lr_scheduler_type", default, remark=say("import.their_default", tool=self.tool))
        ours = ours_for("training.lr_scheduler_type", value)
        if ours not in choices("training.lr_scheduler_type"):
            return self.leave(theirs, value, "optimizer", say("import.why.no_schedule"))
        return self.put("training.lr_scheduler_type", ours, theirs)

    def precision(self, bf16: Any, fp16: Any) -> None:
        """training.bf16 and fp16; `auto` is bfloat16, which is said."""
        auto = isinstance(bf16, str) and bf16.lower() == "auto"
        if auto or flag(bf16):
            self.put("training.bf16", True, "bf16", say("import.bf16_auto") if auto else "")
        elif flag(fp16) or (isinstance(fp16, str) and fp16.lower() == "auto"):
            self.put("training.fp16", True, "fp16")

    def targets(self, value: Any, theirs: str, every: tuple[str, ...] = ("all-linear",)) -> None:
        """lora.target_modules: a list, one word for every linear layer, or a regular expression."""
        if is_off(value):
            return self.leave("target_modules", value, "targets", say("import.why.no_targets"))
        if isinstance(value, str) and value in every:
            return self.put("lora.target_modules", "all-linear", theirs)
        try:
            return self.put("lora.target_modules", value if isinstance(value, str) else names(value), theirs)
        except Unreadable:
            return self.leave(theirs, value, "targets", say("import.why.unreadable"))


_TASKS = {theirs: ours for ours, theirs in TASKS.items()}
_CLASSES = {"SequenceClassification": "seq_cls", "TokenClassification": "token_cls", "CausalLM": "causal_lm"}
# As in model/heads.py, which imports torch.
HEAD_MODULES = ("classifier", "score", "pre_classifier", "pooler", "head")


def choices(key: str) -> tuple[str, ...]:
    """The words that a key of ours takes."""
    section, _, name = key.partition(".")
    return getattr(sections()[section].model_fields[name].annotation, "__args__", ())


def short(value: Any) -> str:
    """A value in one line of at most 60 printable characters."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: 4 * _SHOWN])
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def number(value: Any) -> float:
    """A finite number; YAML 1.1 reads 1e-4 as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Unreadable
    try:
        read = float(value)
    except (ValueError, OverflowError):
        raise Unreadable from None
    if not math.isfinite(read):
        raise Unreadable
    return read


def whole(value: Any) -> int:
    """A whole number."""
    read = number(value)
    if read != int(read):
        raise Unreadable
    return int(read)


def interval(value: Any) -> int | float:
    """Steps, or below 1 a share of all of them."""
    read = number(value)
    return int(read) if read == int(read) else read


def flag(value: Any) -> bool:
    """True for what means yes."""
    return value is True or (isinstance(value, str) and value.lower() in ("true", "yes", "on", "full"))


def names(value: Any) -> list[str]:
    """A list of words; a text is cut at its commas."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise Unreadable
    return [name.strip() for name in value if name.strip()]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unreadable
    return value


def _as_it_is(value: Any) -> Any:
    return value


_KINDS: dict[str, Callable[[Any], Any]] = {
    "float": number,
    "int": whole,
    "int | None": whole,
    "bool": flag,
    "str": _text,
    "str | None": _text,
    "interval": interval,
    "list[str] | None": names,
    "words": _text,
}


def _kind(key: str) -> str:
    section, _, name = key.partition(".")
    annotation = sections()[section].model_fields[name].annotation
    text = getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
    if "Literal" in text:
        return "words"
    if "Annotated" in text:
        return "interval"
    return text
